"""keep_failed_pods_s: the objects of a lab that failed stay for a while, and then go by themselves."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import yaml

from dispatcher.broker import topology
from dispatcher.broker.publisher import Publisher
from dispatcher.errors import NotConfirmed
from dispatcher.message.envelope import TaskMessage, decode
from dispatcher.tasks import DELETE_LAB_POD
from jobs.config.stored import DEFAULTS, SETTINGS
from jobs.container.consumer import Delivery, Settlement
from jobs.container.run_task import run_task
from jobs.handlers.context import Connections
from tests.support.broker.rabbitmq import Broker
from tests.support.cluster.fake_cluster import FakeCluster
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_task
from tests.support.labs.creates import CRASHED, delivery_of, name_of, settle
from tests.support.store import Bucket

KEPT_S = 30


@pytest.fixture(autouse=True)
def crashing(bucket: Bucket, cluster: FakeCluster) -> None:
    content = yaml.safe_load((DEFAULTS / SETTINGS).read_bytes())
    bucket.put(SETTINGS, yaml.safe_dump({**content, "keep_failed_pods_s": KEPT_S}).encode())
    cluster.pod_status = CRASHED


def fail(connections: Connections, lab: int, **changes: Any) -> TaskMessage:
    """Run a create that fails, and return it as it waits on the ladder."""
    task = make_task(kwargs=create_kwargs(lab_instance_id=lab), **changes)
    settle(connections, task)
    return task


def come_back(connections: Connections, broker: Broker) -> Settlement:
    """Run the task that waits, as if its time had come."""
    message = broker.take_delayed()
    assert message.delay_s == KEPT_S
    connections.settings = replace(connections.settings, job_name="second")
    delivery = Delivery(message.body, message.properties, message.routing_key, redelivered=False, tag=2)
    return run_task(connections, delivery, {})


def test_the_objects_of_a_failed_lab_stay_until_its_task_comes_back(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    fail(connections, lab)
    assert database.lab(lab)["status"] == "FAILED"
    assert cluster.names() == {name_of(lab)}
    assert database.ledger()[0]["details"]["objects_kept_s"] == KEPT_S
    assert come_back(connections, broker) is Settlement.ACK
    assert cluster.names() == set()
    assert database.outcomes() == ["failed", "noop"]
    assert broker.delayed() == 0
    assert broker.is_empty(topology.DEAD_LETTER_QUEUE)


def test_the_result_of_the_first_failure_stands(
    connections: Connections, database: Database, broker: Broker, lab: int
) -> None:
    task = fail(connections, lab)
    results = database.results
    before = results.status(task.id)
    come_back(connections, broker)
    after = results.status(task.id)
    results.close()
    assert (before.state.value, before.error_category) == ("FAILURE", "PERMANENT_IMAGE_ERROR")
    assert after == before
    assert len(database.rows("SELECT * FROM notifications")) == 1


def test_what_comes_back_has_neither_a_time_to_wait_for_nor_one_to_end(
    connections: Connections, broker: Broker, lab: int
) -> None:
    soon = datetime.now(timezone.utc) + timedelta(seconds=20)
    task = fail(connections, lab, expires=soon)
    message = broker.take_delayed()
    waiting = decode(message.body, message.properties)
    assert (waiting.id, waiting.eta, waiting.expires) == (task.id, None, None)
    assert message.properties.expiration is None


def test_a_delete_takes_them_at_once(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    fail(connections, lab)
    delete = make_task(name=DELETE_LAB_POD, kwargs={"lab_instance_id": lab})
    run_task(connections, delivery_of(delete), {})
    assert cluster.names() == set()
    assert database.lab(lab)["status"] == "STOPPED"
    assert come_back(connections, broker) is Settlement.ACK
    assert database.lab(lab)["status"] == "STOPPED"
    assert database.outcomes() == ["failed", "succeeded", "noop"]


def test_a_wait_that_the_broker_does_not_take_keeps_nothing(
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    lab: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise NotConfirmed("x", "the broker is away")

    task = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    with monkeypatch.context() as patch:
        patch.setattr(Publisher, "publish", refuse)
        assert run_task(connections, delivery_of(task), {}) is Settlement.NACK
    settle(connections, task)
    assert cluster.names() == set()
    assert database.outcomes() == ["failed", "noop"]


def test_a_failure_without_a_pod_keeps_nothing(
    connections: Connections, cluster: FakeCluster, broker: Broker, lab: int
) -> None:
    kwargs = create_kwargs(lab_instance_id=lab, docker_image="registry.example/other:1")
    run_task(connections, delivery_of(make_task(kwargs=kwargs)), {})
    assert broker.delayed() == 0
