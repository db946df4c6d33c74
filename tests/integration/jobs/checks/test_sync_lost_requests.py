"""What a sync makes of labs whose messages it does not see: lost requests, and those that it waits for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import pytest

import jobs.verify.snapshot
from dispatcher.broker import topology
from dispatcher.broker.publisher import Publisher
from dispatcher.tasks import CREATE_LAB_POD, DELETE_LAB_POD
from jobs.container.settle import publish_delayed
from jobs.database.lab_store import LabStore
from jobs.database.ledger import Ending
from jobs.failures import Failure
from jobs.handlers.context import Connections
from tests.support.broker.rabbitmq import Broker
from tests.support.cluster.fake_cluster import FakeCluster
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_record, make_task
from tests.support.labs.syncing import Sync, status, waiting
from tests.support.labs.verifying import Actions, add_objects, age, running


def publish(broker: Broker, name: str, lab: int, **changes: object) -> str:
    kwargs = create_kwargs(lab_instance_id=lab) if name == CREATE_LAB_POD else {"lab_instance_id": lab}
    return broker.publish_task(name=name, kwargs=kwargs, **changes)


def at_pause(number: int, act: Callable[[], object]) -> Callable[[], None]:
    """Return what acts at one of the pauses between the looks, the first being 1."""
    pauses = count(1)

    def pause() -> None:
        if next(pauses) == number:
            act()

    return pause


def test_a_message_that_waits_is_neither_touched_nor_judged(
    synced: Sync, database: Database, broker: Broker
) -> None:
    lab, other = database.add_lab(), database.add_lab()
    age(database)
    task_ids = [publish(broker, CREATE_LAB_POD, one) for one in (lab, other)]
    result = synced()
    assert (result["found"], result["undecided"]) == ({}, 2)
    assert [status(database, one) for one in (lab, other)] == ["PENDING"] * 2
    taken = [broker.take(topology.QUEUE_NORMAL) for _ in range(2)]
    assert [message.headers["id"] for message in taken] == task_ids
    assert not any(message.redelivered or "x-autolabs-verify" in message.headers for message in taken)


@pytest.mark.parametrize("queue", topology.BINDINGS)
def test_a_message_of_whatever_task_keeps_labs_from_being_judged(
    synced: Sync, database: Database, broker: Broker, queue: str
) -> None:
    lab = database.add_lab()
    age(database)
    broker.publish(queue, b"whatever")
    assert synced()["undecided"] == 1
    assert status(database, lab) == "PENDING"
    broker.take(queue)
    assert synced()["repaired"] == {"request_lost": 1}


def test_more_labs_wait_than_messages_could_serve(
    synced: Sync, database: Database, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    lab, other = database.add_lab(), database.add_lab()
    age(database)
    publish(broker, CREATE_LAB_POD, lab)
    result = synced()
    assert (result["found"], result["repaired"], result["left"]) == ({"request_lost": 2}, {}, 2)
    assert [status(database, one) for one in (lab, other)] == ["PENDING"] * 2
    assert "1 of 2 such labs may wait unseen" in caplog.text


def begin(database: Database, labs: LabStore, lab: int, **changes: Any) -> None:
    record = make_record(lab, **changes)
    labs.begin(record)
    labs.mark_running(record, lab, pod_name="x", connection_url="http://x/")


@pytest.mark.parametrize(
    ("changes", "reported"),
    [({}, True), ({"attempt": 2}, False), ({"redelivered": True}, False), ({"queue": "other"}, False)],
)
def test_a_lab_that_younger_ones_overtook_is_reported_alone(
    synced: Sync,
    database: Database,
    broker: Broker,
    labs: LabStore,
    cluster: FakeCluster,
    changes: dict[str, Any],
    *,
    reported: bool,
) -> None:
    lost = database.add_lab()
    age(database)
    younger, waits = database.add_lab(), database.add_lab()
    begin(database, labs, younger, **changes)
    add_objects(cluster, younger, name="x")
    age(database, 600)
    publish(broker, CREATE_LAB_POD, waits)
    publish(broker, CREATE_LAB_POD, waits)
    result = synced()
    assert result["found"] == ({"request_lost": 1} if reported else {})
    assert result["repaired"] == {}
    assert result["undecided"] == (1 if reported else 2)
    assert status(database, lost) == "PENDING"


def test_what_waits_for_its_time_keeps_labs_from_being_judged(
    synced: Sync, database: Database, publisher: Publisher, broker: Broker
) -> None:
    lab = database.add_lab()
    age(database)
    eta = datetime.now(timezone.utc) + timedelta(hours=1)
    task = make_task(kwargs=create_kwargs(lab_instance_id=lab), eta=eta)
    publish_delayed(publisher, task, 3600)
    assert synced()["undecided"] == 1
    assert status(database, lab) == "PENDING"


@pytest.mark.parametrize("outcome", ["started", "retried"])
def test_a_lab_that_a_container_is_at_or_comes_back_to_is_left_alone(
    synced: Sync, database: Database, labs: LabStore, outcome: str
) -> None:
    lab = database.add_lab()
    age(database)
    record = make_record(lab)
    labs.begin(record)
    if outcome == "retried":
        record.details["retry_delay_s"] = 600
        labs.record(record, Ending.of_error("retried", Failure.NO_ROOM.error()))
        age(database, 500)
    else:
        age(database, 1000)
    assert synced()["found"] == {}
    assert status(database, lab) == "PENDING"


def test_a_request_in_the_outbox_is_not_lost(synced: Sync, database: Database) -> None:
    lab = database.add_lab()
    age(database)
    arguments = f'{{"lab_instance_id": {lab}}}'
    insert = "INSERT INTO task_outbox (task_name, kwargs) VALUES (%s, CAST(%s AS jsonb))"
    database.rows(insert, CREATE_LAB_POD, arguments)
    assert synced()["found"] == {}


def test_a_dead_letter_that_was_published_again_is_waited_for(synced: Sync, database: Database) -> None:
    lab = database.add_lab()
    age(database)
    database.rows(
        "INSERT INTO dead_letter_actions (actor, action, message_key, lab_instance_id, routing_key,"
        " body_bytes) VALUES ('me', 'requeued', 'key', %s, 'lab.create', 1)",
        lab,
    )
    assert synced()["found"] == {}


def test_a_container_that_holds_the_message_is_waited_for(
    synced: Sync, database: Database, broker: Broker, labs: LabStore, between_looks: Actions
) -> None:
    """It claimed the message and has not written to the ledger: until the last pause."""
    lab = database.add_lab()
    age(database)
    publish(broker, CREATE_LAB_POD, lab)
    channel = broker.channel()
    channel.basic_get(topology.QUEUE_NORMAL)
    pauses: list[int] = []
    between_looks += [lambda: pauses.append(1), at_pause(2, lambda: labs.begin(make_record(lab)))]
    result = synced()
    assert (len(pauses), result["found"], result["repaired"]) == (2, {}, {})
    assert status(database, lab) == "PENDING"


@pytest.mark.parametrize("when", [1, 2])
def test_a_message_that_comes_back_meanwhile_is_seen(
    synced: Sync, database: Database, broker: Broker, between_looks: Actions, when: int
) -> None:
    lab = database.add_lab()
    age(database)
    publish(broker, CREATE_LAB_POD, lab)
    channel = broker.channel()
    method, _, _ = channel.basic_get(topology.QUEUE_NORMAL)

    def give_back() -> None:
        channel.basic_nack(method.delivery_tag, requeue=True)
        channel.connection.process_data_events(0)

    between_looks.append(at_pause(when, give_back))
    assert synced()["repaired"] == {}
    assert status(database, lab) == "PENDING"


def test_what_waits_for_others_meanwhile_does_not_mean_that_a_request_came(
    synced: Sync,
    database: Database,
    publisher: Publisher,
    between_looks: Actions,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab, other = database.add_lab(), database.add_lab(status="FAILED")
    age(database)
    eta = datetime.now(timezone.utc) + timedelta(hours=1)
    task = make_task(kwargs=create_kwargs(lab_instance_id=other), eta=eta)
    between_looks.append(at_pause(2, lambda: publish_delayed(publisher, task, 3600)))
    result = synced()
    assert (result["found"], result["undecided"], result["left"]) == ({}, 1, 0)
    assert "came after all" not in caplog.text
    warned = [record for record in caplog.records if getattr(record, "action", None) == "undecided"]
    assert [(record.levelname, record.__dict__["lab_instance_id"]) for record in warned] == [("WARNING", lab)]
    assert status(database, lab) == "PENDING"


def test_a_broker_that_goes_away_meanwhile_leaves_the_labs_undecided(
    connections: Connections,
    synced: Sync,
    database: Database,
    broker: Broker,
    between_looks: Actions,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lab = database.add_lab()
    age(database)
    url = broker.url_of_user(configure="^$", write=r"^(autolabs\..*|celery_delayed_27)$", read=r"^celery\..*")
    connections.settings = replace(connections.settings, broker=replace(broker.settings, url=url))
    user = f"/users/{urlsplit(url).username}"
    other = {"password": "another", "tags": ""}
    between_looks.append(at_pause(2, lambda: broker.api.call("PUT", user, other)))
    result = synced()
    assert (result["found"], result["undecided"], result["left"]) == ({}, 1, 0)
    (warned,) = (record for record in caplog.records if getattr(record, "action", None) == "undecided")
    assert "could not look at the broker" in warned.__dict__["repair"]
    assert status(database, lab) == "PENDING"


def test_it_waits_for_four_heartbeats_before_a_request_is_lost(
    synced: Sync, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    pause = "dispatcher.interrupts.Stop.pause"
    monkeypatch.setattr(pause, lambda _self, seconds: pauses.append(seconds))
    database.add_lab()
    age(database)
    synced()
    assert pauses == [jobs.verify.snapshot.SETTLE_S, 120.0]


def test_a_stop_is_not_asked_for_again_while_deletes_wait(
    synced: Sync, database: Database, broker: Broker, cluster: FakeCluster
) -> None:
    lab = running(database, cluster, stop_requested_at=datetime.now(timezone.utc))
    age(database)
    publish(broker, DELETE_LAB_POD, lab)
    assert synced()["found"] == {}
    assert waiting(broker) == {topology.QUEUE_HIGH: 1}


def test_a_jobs_own_broker_user_may_count(
    connections: Connections, synced: Sync, database: Database, broker: Broker
) -> None:
    lost = database.add_lab()
    age(database)
    url = broker.url_of_user(configure="^$", write=r"^(autolabs\..*|celery_delayed_27)$", read=r"^celery\..*")
    connections.settings = replace(connections.settings, broker=replace(broker.settings, url=url))
    assert synced()["repaired"] == {"request_lost": 1}
    assert status(database, lost) == "FAILED"
