"""A create that loses, fails or fails for good: whose objects go, and what the lab's row says.

The database, the broker and the object store are real; the API server is scripted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pika
import pytest
from celery import Celery

import jobs.cluster
import jobs.labs
from dispatcher import ladder, topology
from dispatcher.errors import TaskFailed
from dispatcher.message import TaskMessage, encode
from dispatcher.results import ResultStore, TaskState
from dispatcher.tasks import DELETE_LAB_POD
from jobs import create_lab as create_module
from jobs.cluster import Cluster
from jobs.cluster_access import ClusterAccess
from jobs.consumer import Delivery
from jobs.context import Connections, TaskContext
from jobs.create_lab import create_lab, fail_create
from jobs.errors import Category, JobError, PermanentError, TransientError
from jobs.lab_objects import LabGone, LabObjects
from jobs.labs import LabStore
from jobs.naming import lab_labels, lab_object_name
from jobs.results import ResultWriter
from jobs.settings import JobSettings, ResultSettings, RetrySettings
from jobs.worker import run_task
from tests.support.factories import IMAGE, create_kwargs, make_payload, make_record, make_task
from tests.support.fake_cluster import READY, FakeCluster
from tests.support.http_server import ScriptedServer
from tests.support.postgres import Database
from tests.support.rabbitmq import Broker
from tests.support.store import Bucket

PODS = "/api/v1/namespaces/labs/pods"
NO_SUCH_IMAGE = {
    "phase": "Pending",
    "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "x: not found"}}}],
}
NO_ROOM = {"phase": "Failed", "reason": "Evicted", "message": "disk"}
ERROR = PermanentError(Category.PERMANENT_IMAGE_ERROR, "The image is wrong.")
LAST_TRY = RetrySettings(max_retries=0, jitter=False)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def connections(
    broker: Broker,
    database: Database,
    bucket: Bucket,
    cluster: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Connections]:
    monkeypatch.setattr(jobs.cluster, "BLIP_S", 0.2)
    monkeypatch.setattr(jobs.labs, "BLIP_S", 0.2)
    settings = JobSettings(
        broker=broker.settings,
        database_url=database.url,
        store=bucket.settings,
        retry=LAST_TRY,
        queue=topology.QUEUE_NORMAL,
        claim_wait_s=1,
        ready_port=1,
        namespace="labs",
        kubeconfig_object="",
        pod_name="pod",
        job_name="job",
        log_level="INFO",
    )
    with ScriptedServer(cluster) as server:
        cluster.serve_at(server.url)
        opened = Connections(settings)
        opened.lab_objects = LabObjects(Cluster(ClusterAccess(server.url, ca_pem="")), "labs")
        yield opened
        opened.labs.close()
        opened.publisher.close()


@pytest.fixture
def lab(database: Database) -> int:
    return database.add_lab()


def context_of(connections: Connections, lab: int, **changes: Any) -> TaskContext:
    return TaskContext(connections, make_record(lab, **changes))


def name_of(lab: int, image: str = IMAGE) -> str:
    return lab_object_name(lab, image)


def add_pod(cluster: FakeCluster, lab: int, name: str) -> str:
    path = f"{PODS}/{name}"
    cluster.add(path, {"kind": "Pod", "metadata": {"name": name, "labels": lab_labels(lab, 7, 42)}})
    return path


def set_lab(database: Database, lab: int, status: str, pod_name: str | None = None) -> None:
    statement = "UPDATE lab_instances SET status = %s, k8s_pod_name = %s WHERE id = %s"
    database.rows(statement, status, pod_name, lab)


def delivery_of(task: TaskMessage) -> Delivery:
    body, sent = encode(task)
    return Delivery(body, pika.BasicProperties(**sent), "lab.create", redelivered=False, tag=1)


def test_the_url_has_the_first_port_of_the_service(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    create_lab(context_of(connections, lab), make_payload(lab_instance_id=lab))
    row = database.lab(lab)
    assert (row["status"], row["k8s_pod_name"]) == ("RUNNING", name_of(lab))
    assert row["connection_url"] == f"http://127.0.0.1:{cluster.port}/"
    assert cluster.deleted == []


@pytest.mark.parametrize(("attempt", "expected_s"), [(1, 60), (3, 180), (4, 240), (9, 240)])
def test_later_attempts_wait_longer_but_never_beyond_the_containers_time(
    connections: Connections, lab: int, monkeypatch: pytest.MonkeyPatch, attempt: int, expected_s: int
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(LabObjects, "wait_ready", lambda *_args, timeout_s: waited.append(timeout_s))
    create_lab(context_of(connections, lab, attempt=attempt), make_payload(lab_instance_id=lab))
    assert waited == [expected_s]
    assert expected_s <= create_module.MAX_READY_TIMEOUT_S


@pytest.mark.parametrize(
    ("pod_status", "kind"),
    [(NO_SUCH_IMAGE, PermanentError), (NO_ROOM, TransientError)],
    ids=["permanent", "transient"],
)
def test_an_attempt_that_fails_deletes_nothing_and_leaves_the_lab_pending(
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    lab: int,
    pod_status: dict[str, Any],
    kind: type[JobError],
) -> None:
    cluster.pod_status = pod_status
    with pytest.raises(kind):
        create_lab(context_of(connections, lab), make_payload(lab_instance_id=lab))
    assert cluster.deleted == []
    assert len(cluster.objects) == 3
    assert database.lab(lab)["status"] == "PENDING"
    assert database.ledger() == []


def test_a_failure_is_told_before_the_objects_go(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    add_pod(cluster, lab, name_of(lab))
    seen: list[str] = []
    cluster.on_delete = lambda _path: seen.append(database.lab(lab)["status"])
    fail_create(context_of(connections, lab), ERROR, outcome="failed")
    assert seen == ["FAILED"]
    assert cluster.objects == {}
    assert database.lab(lab)["error_message"] == "The image is wrong."
    assert database.outcomes() == ["failed"]


@pytest.mark.parametrize("pod", ["same", "another"])
def test_a_failure_deletes_nothing_of_a_lab_that_another_container_started(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int, pod: str
) -> None:
    running = name_of(lab) if pod == "same" else name_of(lab, "registry/other:1")
    add_pod(cluster, lab, running)
    set_lab(database, lab, "RUNNING", running)
    fail_create(context_of(connections, lab), ERROR, outcome="failed")
    assert cluster.deleted == []
    assert database.lab(lab)["status"] == "RUNNING"
    assert database.lab(lab)["error_message"] is None
    assert database.outcomes() == ["failed"]


def test_a_failure_of_a_lab_without_a_row_deletes_nothing(
    connections: Connections, cluster: FakeCluster, database: Database
) -> None:
    add_pod(cluster, 4711, name_of(4711))
    fail_create(context_of(connections, 4711), ERROR, outcome="dead_lettered")
    assert cluster.deleted == []
    assert database.outcomes() == ["dead_lettered"]


def test_a_failure_that_names_no_lab_is_recorded(connections: Connections, database: Database) -> None:
    context = TaskContext(connections, make_record(None))
    fail_create(context, ERROR, outcome="dead_lettered")
    assert database.outcomes() == ["dead_lettered"]


@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_a_failure_of_a_lab_that_is_over_takes_its_objects_down(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int, status: str
) -> None:
    add_pod(cluster, lab, name_of(lab))
    set_lab(database, lab, status)
    fail_create(context_of(connections, lab), ERROR, outcome="failed")
    assert cluster.objects == {}
    assert database.lab(lab)["status"] == status


def test_a_failure_that_is_not_recorded_deletes_nothing(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    add_pod(cluster, lab, name_of(lab))
    database.rows("DROP TABLE task_ledger")
    with pytest.raises(PermanentError):
        fail_create(context_of(connections, lab), ERROR, outcome="failed")
    assert cluster.deleted == []
    assert database.lab(lab)["status"] == "PENDING"


def when_applied(cluster: FakeCluster, kind: str, act: Callable[[], object]) -> None:
    def on_apply(path: str) -> None:
        if f"/{kind}/" in path:
            act()

    cluster.on_apply = on_apply


def test_a_create_that_lost_to_another_image_deletes_only_what_it_made(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    winner = name_of(lab, "registry/other:1")
    kept = add_pod(cluster, lab, winner)
    when_applied(cluster, "networkpolicies", lambda: set_lab(database, lab, "RUNNING", winner))
    create_lab(context_of(connections, lab), make_payload(lab_instance_id=lab))
    assert list(cluster.objects) == [kept]
    assert len(cluster.deleted) == 3
    row = database.lab(lab)
    assert (row["status"], row["k8s_pod_name"]) == ("RUNNING", winner)
    assert database.outcomes() == ["noop"]


def test_a_create_that_lost_to_itself_deletes_nothing(
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    lab: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(*_args: object, **_options: object) -> None:
        set_lab(database, lab, "RUNNING", name_of(lab))
        raise LabGone

    monkeypatch.setattr(LabObjects, "wait_ready", gone)
    create_lab(context_of(connections, lab), make_payload(lab_instance_id=lab))
    assert cluster.deleted == []
    assert len(cluster.objects) == 3
    assert database.outcomes() == ["noop"]


def test_a_create_whose_lab_was_stopped_meanwhile_takes_everything_down(
    connections: Connections, cluster: FakeCluster, database: Database, labs: LabStore, lab: int
) -> None:
    add_pod(cluster, lab, name_of(lab, "registry/other:1"))
    when_applied(cluster, "networkpolicies", lambda: labs.request_stop(lab))
    create_lab(context_of(connections, lab), make_payload(lab_instance_id=lab))
    assert cluster.objects == {}
    assert database.lab(lab)["status"] == "PENDING"
    assert database.outcomes() == ["noop"]


def test_a_pod_that_went_while_its_lab_is_wanted_is_tried_again(
    connections: Connections, cluster: FakeCluster, lab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_args: object, **_options: object) -> None:
        raise LabGone

    monkeypatch.setattr(LabObjects, "wait_ready", gone)
    with pytest.raises(TransientError, match="removed while it started"):
        create_lab(context_of(connections, lab), make_payload(lab_instance_id=lab))
    assert cluster.deleted == []


def test_the_pod_of_an_earlier_attempt_that_was_evicted_is_replaced(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    cluster.pod_status = NO_ROOM
    with pytest.raises(TransientError):
        create_lab(context_of(connections, lab), make_payload(lab_instance_id=lab))
    cluster.pod_status = READY
    create_lab(context_of(connections, lab, attempt=2), make_payload(lab_instance_id=lab))
    assert cluster.deleted == [f"{PODS}/{name_of(lab)}"]
    assert database.lab(lab)["status"] == "RUNNING"


def test_a_try_before_the_last_keeps_the_lab_and_its_objects(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    connections.settings = replace(connections.settings, retry=RetrySettings(max_retries=1, jitter=False))
    cluster.pod_status = NO_ROOM
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    assert run_task(connections, delivery_of(create), {})
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
    assert run_task(connections, delivery_of(create), {})
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
        assert run_task(connections, delivery_of(create), {})
        message = broker.take_delayed()
        assert (message.headers["id"], message.headers["retries"]) == (create.id, retries)
        assert message.body == encode(create)[0]
        assert 40 <= message.delay_s <= 80
    assert broker.is_empty(topology.DEAD_LETTER_QUEUE)
    assert cluster.deleted == []


def test_a_take_down_that_the_cluster_refuses_now_comes_back_until_it_is_done(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    cluster.pod_status = NO_SUCH_IMAGE
    cluster.refuses_deletes = True
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    assert run_task(connections, delivery_of(create), {})
    assert database.lab(lab)["status"] == "FAILED"
    assert len(cluster.objects) == 3
    assert broker.take_delayed().headers["retries"] == 0
    cluster.refuses_deletes = False
    assert run_task(connections, delivery_of(create), {})
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
    assert run_task(connections, delivery_of(create), {})
    assert broker.take_delayed().headers["id"] == create.id
    cluster.refuses_deletes = False
    for _ in range(2):
        assert run_task(connections, delivery_of(create), {})
    assert database.outcomes() == ["failed", "noop", "noop"]
    status = ResultStore(database.url).status(create.id)
    assert (status.state, status.error_category) == (TaskState.FAILURE, "PERMANENT_IMAGE_ERROR")
    with pytest.raises(TaskFailed) as caught:
        celery_app.AsyncResult(create.id).get(timeout=5)
    assert caught.value.category == "PERMANENT_IMAGE_ERROR"


def test_a_delete_that_fails_for_good_while_the_database_is_away_comes_back(
    connections: Connections, broker: Broker, lab: int
) -> None:
    connections.labs = LabStore("postgresql://u@127.0.0.1:1/db", application_name="away")
    delete = make_task(name=DELETE_LAB_POD, kwargs={"lab_instance_id": lab}, retries=3)
    assert run_task(connections, delivery_of(delete), {})
    message = broker.take_delayed()
    assert (message.headers["id"], message.headers["retries"]) == (delete.id, 3)
    assert broker.is_empty(topology.DEAD_LETTER_QUEUE)


def test_a_failure_that_cannot_even_come_back_gives_the_message_back(
    connections: Connections, broker: Broker, lab: int
) -> None:
    connections.labs = LabStore("postgresql://u@127.0.0.1:1/db", application_name="away")
    broker.channel().exchange_delete(ladder.ENTRY_EXCHANGE)
    assert not run_task(connections, delivery_of(make_task(kwargs=create_kwargs(lab_instance_id=lab))), {})
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
    when_applied(cluster, "pods", lambda: database.rows("DROP TABLE task_ledger"))
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    assert run_task(connections, delivery_of(create), {})
    message = broker.take(topology.DEAD_LETTER_QUEUE)
    assert message.headers["x-autolabs-category"] == "PERMANENT_IMAGE_ERROR"
    assert "ledger_missed" in [getattr(record, "action", "") for record in caplog.records]
    assert broker.delayed() == 0
    assert cluster.deleted == []


def cancel(database: Database, task: TaskMessage) -> None:
    assert ResultStore(database.url).cancel(task.id).state is TaskState.REVOKED


def test_a_cancelled_create_stops_its_pending_lab_and_takes_down_what_an_attempt_left(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    add_pod(cluster, lab, name_of(lab))
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab), retries=1)
    cancel(database, create)
    assert run_task(connections, delivery_of(create), {})
    assert cluster.objects == {}
    row = database.lab(lab)
    assert (row["status"], row["error_message"]) == ("STOPPED", "The start of this lab was cancelled.")
    assert row["stop_requested_at"] is not None
    assert database.outcomes() == ["revoked"]
    assert ResultStore(database.url).status(create.id).state is TaskState.REVOKED
    assert broker.is_empty(*topology.BINDINGS, topology.DEAD_LETTER_QUEUE)
    assert broker.delayed() == 0


def test_a_cancelled_duplicate_leaves_a_running_lab_alone(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    add_pod(cluster, lab, name_of(lab))
    set_lab(database, lab, "RUNNING", name_of(lab))
    cancel(database, create)
    assert run_task(connections, delivery_of(create), {})
    assert cluster.deleted == []
    assert (database.lab(lab)["status"], database.outcomes()) == ("RUNNING", ["revoked"])


def test_a_cancelled_create_whose_objects_cannot_go_now_comes_back_until_they_are_gone(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    add_pod(cluster, lab, name_of(lab))
    cluster.refuses_deletes = True
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    cancel(database, create)
    assert run_task(connections, delivery_of(create), {})
    assert broker.take_delayed().headers["retries"] == 0
    cluster.refuses_deletes = False
    assert run_task(connections, delivery_of(create), {})
    assert cluster.objects == {}
    assert database.outcomes() == ["revoked", "revoked"]
    assert broker.is_empty(topology.DEAD_LETTER_QUEUE)


def test_a_create_that_was_cancelled_while_it_started_is_finished_all_the_same(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    seen: list[TaskState] = []
    results = ResultStore(database.url)
    when_applied(cluster, "networkpolicies", lambda: seen.append(results.cancel(create.id).state))
    assert run_task(connections, delivery_of(create), {})
    assert seen == [TaskState.STARTED]
    assert database.lab(lab)["status"] == "RUNNING"
    status = results.status(create.id)
    assert (status.state, status.result) == (
        TaskState.SUCCESS,
        {
            "lab_instance_id": lab,
            "status": "RUNNING",
            "k8s_pod_name": name_of(lab),
            "connection_url": database.lab(lab)["connection_url"],
        },
    )


def test_the_next_attempt_of_a_create_that_was_cancelled_meanwhile_is_not_begun(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    connections.settings = replace(connections.settings, retry=RetrySettings(max_retries=1, jitter=False))
    cluster.pod_status = NO_ROOM
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    results = ResultStore(database.url)
    when_applied(cluster, "networkpolicies", lambda: results.cancel(create.id))
    assert run_task(connections, delivery_of(create), {})
    assert results.status(create.id).state is TaskState.REVOKED
    assert len(cluster.objects) == 3
    assert run_task(connections, delivery_of(replace(create, retries=1)), {})
    assert cluster.objects == {}
    assert database.lab(lab)["status"] == "STOPPED"
    assert database.outcomes() == ["retried", "revoked"]


def test_a_redelivery_after_a_container_died_runs_and_leaves_the_dead_run_as_it_was(
    connections: Connections, database: Database, labs: LabStore, lab: int
) -> None:
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    assert labs.begin(make_record(lab, task_id=create.id))
    assert run_task(connections, delivery_of(create), {})
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
    assert run_task(connections, delivery_of(delete), {})
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
    assert run_task(connections, delivery_of(create), {})
    assert cluster.objects == {}
    assert database.lab(lab)["status"] == "FAILED"
    assert "ran out before it could be performed" in database.lab(lab)["error_message"]
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
        assert run_task(connections, delivery_of(task), {})
    results = ResultStore(database.url)
    assert results.status(delete.id).result == {"lab_instance_id": lab, "status": "STOPPED"}
    assert results.status(late.id).result == {
        "lab_instance_id": lab,
        "status": "STOPPED",
        "k8s_pod_name": name_of(lab),
        "connection_url": None,
    }
    assert results.status(unknown.id).result == {"lab_instance_id": 4711, "status": None}
    assert database.outcomes() == ["succeeded", "succeeded", "noop", "noop"]
