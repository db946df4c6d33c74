"""How a run ends: tried again, failed for good, come back, cancelled, expired; and its result.

The database, the broker and the object store are real; the API server is scripted.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from celery import Celery

from dispatcher.broker import delay_ladder, topology
from dispatcher.errors import TaskFailed
from dispatcher.message.envelope import TaskMessage, encode
from dispatcher.results import TaskState
from dispatcher.tasks import DELETE_LAB_POD
from jobs.config.environment import ResultSettings, RetrySettings
from jobs.container.consumer import Settlement
from jobs.container.run_task import is_task, run_task
from jobs.database.lab_store import LabStore
from jobs.handlers.context import Connections
from jobs.notify.redis_results import ResultWriter
from tests.support.broker.rabbitmq import Broker
from tests.support.cluster.fake_cluster import FakeCluster
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_record, make_task
from tests.support.labs.creates import (
    NO_ROOM,
    NO_SUCH_IMAGE,
    add_pod,
    delivery_of,
    name_of,
    set_lab,
    settle,
    when_created,
)
from tests.support.waiting import HANG_S


def test_a_try_before_the_last_keeps_the_lab_and_its_objects(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    connections.settings = replace(connections.settings, retry=RetrySettings(max_retries=1, jitter=False))
    cluster.pod_status = NO_ROOM
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    settle(connections, create)
    message = broker.take_delayed()
    assert (message.headers["id"], message.headers["retries"], message.delay_s) == (create.id, 1, 5)
    assert len(cluster.objects) == 3
    assert cluster.deleted == []
    assert database.lab(lab)["status"] == "PENDING"
    assert database.outcomes() == ["retried"]


def test_the_last_try_takes_the_lab_down(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    cluster.pod_status = NO_ROOM
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    settle(connections, create)
    message = broker.take(topology.DEAD_LETTER_QUEUE)
    assert message.headers["id"] == create.id
    assert cluster.objects == {}
    assert database.lab(lab)["status"] == "FAILED"


@pytest.mark.parametrize("retries", [0, 3, 9])
def test_a_failure_that_the_database_cannot_take_now_comes_back_with_the_same_retries(
    connections: Connections, cluster: FakeCluster, broker: Broker, lab: int, retries: int
) -> None:
    connections.labs = LabStore("postgresql://u@127.0.0.1:1/db", application_name="away")
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab), retries=retries)
    for _ in range(2):
        settle(connections, create)
        message = broker.take_delayed()
        assert (message.headers["id"], message.headers["retries"]) == (create.id, retries)
        assert message.body == encode(create)[0]
        assert 40 <= message.delay_s <= 80
    assert broker.is_empty(topology.DEAD_LETTER_QUEUE)
    assert cluster.deleted == []


def test_a_request_with_a_lone_surrogate_comes_back_like_any_other(
    connections: Connections, broker: Broker, lab: int
) -> None:
    connections.labs = LabStore("postgresql://u@127.0.0.1:1/db", application_name="away")
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab, docker_image="\ud800"))
    assert run_task(connections, delivery_of(create), {}) is Settlement.RETRY
    assert not is_task(delivery_of(create))
    message = broker.take_delayed()
    assert json.loads(message.body) == [create.args, create.kwargs, json.loads(encode(create)[0])[2]]
    assert 40 <= message.delay_s <= 80


def test_a_take_down_that_the_cluster_refuses_now_comes_back_until_it_is_done(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    cluster.pod_status = NO_SUCH_IMAGE
    cluster.refuses_deletes = True
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    settle(connections, create)
    assert database.lab(lab)["status"] == "FAILED"
    assert len(cluster.objects) == 3
    assert broker.take_delayed().headers["retries"] == 0
    cluster.refuses_deletes = False
    settle(connections, create)
    assert cluster.objects == {}
    assert database.lab(lab)["error_category"] == "PERMANENT_IMAGE_ERROR"
    assert broker.is_empty(topology.DEAD_LETTER_QUEUE)


def test_a_failed_create_that_comes_back_or_is_delivered_twice_stays_a_failure(
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    broker: Broker,
    lab: int,
    celery_app: Celery,
    redis_url: str,
) -> None:
    connections.results = ResultWriter(ResultSettings(redis_url, 60))
    cluster.pod_status = NO_SUCH_IMAGE
    cluster.refuses_deletes = True
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    settle(connections, create)
    assert broker.take_delayed().headers["id"] == create.id
    cluster.refuses_deletes = False
    for _ in range(2):
        settle(connections, create)
    assert database.outcomes() == ["failed", "noop", "noop"]
    status = database.results.status(create.id)
    assert (status.state, status.error_category) == (TaskState.FAILURE, "PERMANENT_IMAGE_ERROR")
    with pytest.raises(TaskFailed) as caught:
        celery_app.AsyncResult(create.id).get(timeout=HANG_S)
    assert caught.value.category == "PERMANENT_IMAGE_ERROR"


def test_a_delete_that_fails_for_good_while_the_database_is_away_comes_back(
    connections: Connections, broker: Broker, lab: int
) -> None:
    connections.labs = LabStore("postgresql://u@127.0.0.1:1/db", application_name="away")
    delete = make_task(name=DELETE_LAB_POD, kwargs={"lab_instance_id": lab}, retries=3)
    settle(connections, delete)
    message = broker.take_delayed()
    assert (message.headers["id"], message.headers["retries"]) == (delete.id, 3)
    assert broker.is_empty(topology.DEAD_LETTER_QUEUE)


def test_a_failure_that_cannot_even_come_back_gives_the_message_back(
    connections: Connections, broker: Broker, lab: int
) -> None:
    connections.labs = LabStore("postgresql://u@127.0.0.1:1/db", application_name="away")
    broker.channel().exchange_delete(delay_ladder.ENTRY_EXCHANGE)
    assert (
        run_task(connections, delivery_of(make_task(kwargs=create_kwargs(lab_instance_id=lab))), {})
        is Settlement.NACK
    )
    assert broker.is_empty(topology.DEAD_LETTER_QUEUE)


def test_a_failure_that_the_database_refuses_for_good_is_in_the_dead_letters(
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    broker: Broker,
    lab: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster.pod_status = NO_SUCH_IMAGE
    when_created(cluster, "pods", lambda: database.rows("DROP TABLE task_ledger"))
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    settle(connections, create)
    message = broker.take(topology.DEAD_LETTER_QUEUE)
    assert message.headers["x-autolabs-category"] == "PERMANENT_IMAGE_ERROR"
    assert "ledger_missed" in [getattr(record, "action", "") for record in caplog.records]
    assert broker.delayed() == 0
    assert cluster.deleted == []


def cancel_late(database: Database, task: TaskMessage) -> None:
    assert database.results.cancel(task.id).state is TaskState.STARTED


def cancel(database: Database, task: TaskMessage) -> None:
    assert database.results.cancel(task.id).state is TaskState.REVOKED


def test_a_cancelled_create_stops_its_pending_lab_and_takes_down_what_an_attempt_left(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    add_pod(cluster, lab, name_of(lab))
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab), retries=1)
    cancel(database, create)
    settle(connections, create)
    assert cluster.objects == {}
    row = database.lab(lab)
    assert (row["status"], row["error_message"]) == ("STOPPED", "The start of this lab was cancelled.")
    assert row["stop_requested_at"] is not None
    assert database.outcomes() == ["revoked"]
    assert database.results.status(create.id).state is TaskState.REVOKED
    assert broker.is_empty(*topology.BINDINGS, topology.DEAD_LETTER_QUEUE)
    assert broker.delayed() == 0


def test_a_cancelled_duplicate_leaves_a_running_lab_alone(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    add_pod(cluster, lab, name_of(lab))
    set_lab(database, lab, "RUNNING", name_of(lab))
    cancel(database, create)
    settle(connections, create)
    assert cluster.deleted == []
    assert (database.lab(lab)["status"], database.outcomes()) == ("RUNNING", ["revoked"])


def test_a_cancelled_create_whose_objects_cannot_go_now_comes_back_until_they_are_gone(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    add_pod(cluster, lab, name_of(lab))
    cluster.refuses_deletes = True
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    cancel(database, create)
    settle(connections, create)
    assert broker.take_delayed().headers["retries"] == 0
    cluster.refuses_deletes = False
    settle(connections, create)
    assert cluster.objects == {}
    assert database.outcomes() == ["revoked", "revoked"]
    assert broker.is_empty(topology.DEAD_LETTER_QUEUE)


def test_a_create_that_is_cancelled_while_it_starts_stops_its_lab(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    seen: list[TaskState] = []
    results = database.results
    when_created(cluster, "networkpolicies", lambda: seen.append(results.cancel(create.id).state))
    settle(connections, create)
    assert seen == [TaskState.STARTED]
    assert (database.lab(lab)["status"], cluster.objects) == ("STOPPED", {})
    assert results.status(create.id).state is TaskState.REVOKED


def test_a_create_that_is_cancelled_while_it_waits_for_its_pod_stops_waiting(
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    lab: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jobs.cluster.lab_objects._MEANWHILE_S", 0.2)
    cluster.pod_status = {"phase": "Pending"}
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    when_created(cluster, "networkpolicies", lambda: cancel_late(database, create))
    began = time.monotonic()
    settle(connections, create)
    assert time.monotonic() - began < 20  # of 60 to become Ready
    assert (database.lab(lab)["status"], cluster.objects) == ("STOPPED", {})


def test_a_create_whose_lab_is_stopped_meanwhile_does_not_wait_for_the_delete(
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    lab: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jobs.cluster.lab_objects._MEANWHILE_S", 0.2)
    cluster.pod_status = {"phase": "Pending"}
    stop = "UPDATE lab_instances SET stop_requested_at = now() WHERE id = %s"
    when_created(cluster, "networkpolicies", lambda: database.rows(stop, lab))
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    settle(connections, create)
    assert (database.lab(lab)["status"], cluster.objects) == ("PENDING", {})
    assert database.outcomes() == ["noop"]


def test_the_next_attempt_of_a_create_that_was_cancelled_meanwhile_is_not_begun(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    connections.settings = replace(connections.settings, retry=RetrySettings(max_retries=1, jitter=False))
    cluster.pod_status = NO_ROOM
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    results = database.results
    when_created(cluster, "networkpolicies", lambda: results.cancel(create.id))
    settle(connections, create)
    assert results.status(create.id).state is TaskState.REVOKED
    assert len(cluster.objects) == 3
    assert run_task(connections, delivery_of(replace(create, retries=1)), {}) is Settlement.ACK
    assert cluster.objects == {}
    assert database.lab(lab)["status"] == "STOPPED"
    assert database.outcomes() == ["retried", "revoked"]


def test_a_redelivery_after_a_container_died_runs_and_leaves_the_dead_run_as_it_was(
    connections: Connections, database: Database, labs: LabStore, lab: int
) -> None:
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    assert labs.begin(make_record(lab, task_id=create.id))
    settle(connections, create)
    assert database.outcomes() == ["started", "succeeded"]
    assert database.lab(lab)["status"] == "RUNNING"


@pytest.mark.parametrize("why", ["cancelled", "expired"])
def test_a_delete_that_is_not_to_be_begun_is_only_recorded(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int, why: str
) -> None:
    add_pod(cluster, lab, name_of(lab))
    set_lab(database, lab, "RUNNING", name_of(lab))
    before = database.lab(lab)
    long_ago = datetime.now(timezone.utc) - timedelta(hours=1) if why == "expired" else None
    delete = make_task(name=DELETE_LAB_POD, kwargs={"lab_instance_id": lab}, expires=long_ago)
    if why == "cancelled":
        cancel(database, delete)
    settle(connections, delete)
    assert cluster.deleted == []
    assert database.lab(lab) == before
    (run,) = database.ledger()
    assert run["outcome"] == "revoked"
    assert run["error_message"]
    assert broker.is_empty(*topology.BINDINGS, topology.DEAD_LETTER_QUEUE)


def test_an_expired_create_fails_its_lab_and_is_not_kept(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    add_pod(cluster, lab, name_of(lab))
    create = make_task(
        kwargs=create_kwargs(lab_instance_id=lab), expires=datetime.now(timezone.utc) - timedelta(hours=1)
    )
    settle(connections, create)
    assert cluster.objects == {}
    assert database.lab(lab)["status"] == "FAILED"
    assert "expired before it could be performed" in database.lab(lab)["error_message"]
    assert database.outcomes() == ["revoked"]
    assert broker.is_empty(topology.DEAD_LETTER_QUEUE)


def test_the_results_of_stops_and_of_creates_with_nothing_to_do(
    connections: Connections, database: Database, lab: int
) -> None:
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    delete = make_task(name=DELETE_LAB_POD, kwargs={"lab_instance_id": lab})
    late = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    unknown = make_task(name=DELETE_LAB_POD, kwargs={"lab_instance_id": 4711})
    for task in (create, delete, late, unknown):
        settle(connections, task)
    results = database.results
    assert results.status(delete.id).result == {"lab_instance_id": lab, "status": "STOPPED"}
    assert results.status(late.id).result == {
        "lab_instance_id": lab,
        "status": "STOPPED",
        "k8s_pod_name": name_of(lab),
        "connection_url": None,
    }
    assert results.status(unknown.id).result == {"lab_instance_id": 4711, "status": None}
    assert database.outcomes() == ["succeeded", "succeeded", "noop", "noop"]


@pytest.mark.parametrize(
    ("begun", "status", "outcome"), [(True, "STOPPED", "succeeded"), (False, "RUNNING", "revoked")]
)
def test_a_stop_that_has_begun_is_done_though_its_time_is_over(
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    lab: int,
    begun: bool,
    status: str,
    outcome: str,
) -> None:
    add_pod(cluster, lab, name_of(lab))
    set_lab(database, lab, "RUNNING", name_of(lab))
    past = datetime.now(timezone.utc) - timedelta(minutes=1)
    task = make_task(name=DELETE_LAB_POD, kwargs={"lab_instance_id": lab}, expires=past)
    assert run_task(connections, replace(delivery_of(task), redelivered=begun), {}) is Settlement.ACK
    assert (database.lab(lab)["status"], database.outcomes()) == (status, [outcome])
