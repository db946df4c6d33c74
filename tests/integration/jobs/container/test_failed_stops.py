"""What the broker or a delete gave up: somebody is told, and the lab is not forgotten."""

from __future__ import annotations

import json
from dataclasses import replace

from dispatcher.broker import topology
from dispatcher.message.envelope import TaskMessage
from dispatcher.tasks import DELETE_LAB_POD
from jobs.container.consumer import Delivery, Settlement
from jobs.container.run_task import run_task
from jobs.handlers.context import Connections
from jobs.notify.notifications import Notifier, sweep
from tests.support.broker.rabbitmq import Broker
from tests.support.cluster.fake_cluster import FakeCluster
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_task
from tests.support.labs.creates import add_pod, delivery_of, name_of
from tests.support.waiting import HANG_S

EVENTS = "test.events"


def bind_events(broker: Broker) -> None:
    channel = broker.channel()
    channel.queue_declare(EVENTS, durable=True, arguments={"x-queue-type": "quorum"})
    channel.queue_bind(EVENTS, topology.EVENTS_EXCHANGE, "lab.stop_failed.#")


def copy_of(task: TaskMessage, reason: str) -> Delivery:
    """Return the copy that the broker sends to celery.cleanup."""
    sent = delivery_of(task)
    death = {"x-last-death-reason": reason, "x-last-death-queue": topology.QUEUE_NORMAL}
    sent.properties.headers = {**(sent.properties.headers or {}), **death}
    return sent


def test_the_administrator_is_told_of_a_stop_that_failed_for_good(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    bind_events(broker)
    foreign = add_pod(cluster, lab + 1, name_of(lab + 1))
    chain = {"chain": [{"task": "x.follow_up"}]}
    delete = make_task(name=DELETE_LAB_POD, kwargs={"lab_instance_id": lab}, unsupported=chain)
    for _ in range(2):
        assert run_task(connections, delivery_of(delete), {}) is Settlement.DEAD_LETTER
    assert list(cluster.objects) == [foreign]
    sweep(connections.labs, Notifier(connections.publisher, None), timeout_s=HANG_S)
    event = broker.take(EVENTS)
    body = json.loads(event.body)
    assert event.routing_key == "lab.stop_failed.admin"
    assert (body["id"], body["type"]) == (f"lab-stop-failed-{lab}-follow_up_unsupported", "lab.stop_failed")
    assert (body["lab_instance_id"], body["task_id"]) == (lab, delete.id)
    assert broker.is_empty(EVENTS)
    assert database.outcomes() == ["dead_lettered", "dead_lettered"]
    assert broker.take(topology.DEAD_LETTER_QUEUE).headers["x-autolabs-cause"] == "follow_up_unsupported"


def test_a_stop_whose_containers_died_is_asked_for_again(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    connections.settings = replace(connections.settings, queue=topology.QUEUE_LOW)
    copy = copy_of(make_task(name=DELETE_LAB_POD, kwargs={"lab_instance_id": lab}), "delivery_limit")
    assert run_task(connections, copy, {}) is Settlement.ACK
    assert database.lab(lab)["stop_requested_at"] is not None
    (row,) = database.rows("SELECT event_type, cause, told FROM notifications")
    assert row == {"event_type": "lab.stop_failed", "cause": "container_crashed", "told": "admin"}
    # It is there already.
    assert broker.is_empty(topology.DEAD_LETTER_QUEUE)


def test_what_expired_in_its_queue_is_not_started_without_an_expires_of_its_own_either(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    connections.settings = replace(connections.settings, queue=topology.QUEUE_LOW)
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    assert run_task(connections, copy_of(create, "expired"), {}) is Settlement.ACK
    assert (database.lab(lab)["status"], cluster.objects) == ("FAILED", {})
    assert database.outcomes() == ["revoked"]


def test_a_dead_letter_that_was_moved_back_by_hand_is_performed(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    assert run_task(connections, copy_of(create, "delivery_limit"), {}) is Settlement.ACK
    assert database.lab(lab)["status"] == "RUNNING"


def test_a_message_that_counts_as_worn_out_is_kept_as_a_dead_letter(
    connections: Connections, database: Database, broker: Broker, lab: int
) -> None:
    sent = delivery_of(make_task(kwargs=create_kwargs(lab_instance_id=lab)))
    sent.properties.headers = {**(sent.properties.headers or {}), "x-autolabs-deliveries": 6}
    assert run_task(connections, sent, {}) is Settlement.DEAD_LETTER
    assert database.lab(lab)["status"] == "FAILED"
    assert broker.take(topology.DEAD_LETTER_QUEUE).headers["x-autolabs-cause"] == "container_crashed"
