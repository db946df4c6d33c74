"""A create that fails for good leaves one dead letter, whatever happens around it."""

from __future__ import annotations

from dataclasses import replace

from dispatcher.broker import topology
from jobs.container.consumer import Settlement
from jobs.container.run_task import run_task
from jobs.database.lab_rows import LabState
from jobs.handlers.context import Connections
from tests.support.broker.rabbitmq import Broker
from tests.support.cluster.fake_cluster import FakeCluster
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_task
from tests.support.labs.creates import NO_ROOM, delivery_of, settle


def test_one_is_enough_however_long_its_objects_cannot_be_taken_down(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    cluster.pod_status = NO_ROOM
    cluster.refuses_deletes = True
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    for _ in range(3):
        settle(connections, create)
        assert broker.take_delayed().headers["id"] == create.id
    assert broker.depth(topology.DEAD_LETTER_QUEUE) == 1
    assert database.outcomes() == ["dead_lettered", "retried", "retried"]
    cluster.refuses_deletes = False
    settle(connections, create)
    assert (cluster.objects, broker.delayed()) == ({}, 0)
    assert broker.depth(topology.DEAD_LETTER_QUEUE) == 1


def test_one_that_was_recorded_and_not_published_is_published_by_the_next_delivery(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    cluster.pod_status = NO_ROOM
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    broker.channel().exchange_delete(topology.DEAD_LETTER_EXCHANGE)
    assert run_task(connections, delivery_of(create), {}) is Settlement.NACK
    assert database.outcomes() == ["dead_lettered"]
    topology.declare_topology(broker.channel())
    again = replace(delivery_of(create), redelivered=True)
    assert run_task(connections, again, {}) is Settlement.ACK
    assert database.outcomes() == ["dead_lettered", "noop"]
    headers = broker.take(topology.DEAD_LETTER_QUEUE).headers
    assert (headers["id"], headers["x-autolabs-cause"]) == (create.id, "node_ended_it")
    assert headers["x-autolabs-reason"].startswith("The server had no room for this lab. It was tried once.")


def test_a_database_without_the_table_of_notifications_keeps_no_lab_pending(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    cluster.pod_status = NO_ROOM
    database.rows("DROP TABLE notifications")
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    settle(connections, create)
    assert (database.lab(lab)["status"], cluster.objects) == ("FAILED", {})
    assert database.outcomes() == ["dead_lettered"]


def test_a_pod_that_starts_well_is_not_lost_to_a_database_that_is_away_for_a_moment(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    asked = []
    find = connections.labs.find

    def away_while_it_waits(lab_instance_id: int, *, task_id: str | None = None) -> LabState | None:
        from jobs.failures import Failure

        asked.append(task_id)
        if len(asked) == 1:  # before anything is made
            return find(lab_instance_id, task_id=task_id)
        cluster.pod_status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        for item in cluster.objects.values():
            if item["kind"] == "Pod":
                item["status"] = cluster.pod_status
        raise Failure.DATABASE_AWAY.error()

    connections.labs.find = away_while_it_waits  # type: ignore[method-assign]
    cluster.pod_status = {"phase": "Pending"}
    create = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    settle(connections, create)
    assert asked == [create.id] * 2
    assert database.lab(lab)["status"] == "RUNNING"
    assert broker.delayed() == 0
