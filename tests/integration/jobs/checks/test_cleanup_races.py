"""Cleanups that run at once, that are killed, and that meet a broker which is away."""

from __future__ import annotations

import signal

import pytest
from sqlalchemy import Engine, text

from dispatcher import DeleteLabPod, outbox
from dispatcher.broker import topology
from dispatcher.lab_time import cleanup_task_id
from dispatcher.message.request import TaskRequest
from jobs.checks import cleanup
from jobs.database.due_rows import DueLab
from jobs.database.lab_store import LabStore
from tests.support.broker.rabbitmq import Broker
from tests.support.containers.container import Containers
from tests.support.database.postgres import Database
from tests.support.labs.cleaning import Cleaning
from tests.support.waiting import HANG_S, eventually


@pytest.mark.timeout(120)
def test_cleanups_at_once_publish_one_delete_for_each_lab(
    cleaning: Cleaning, containers: Containers, database: Database
) -> None:
    expired = cleaning.add_expired(250)
    running = [containers.start(module="cronjobs cleanup") for _ in range(3)]
    assert [one.wait(2 * HANG_S) for one in running] == [0, 0, 0]
    assert sorted(cleaning.deleted()) == expired
    assert cleaning.outbox() == []
    assert database.outcomes() == ["succeeded"] * 3
    counts = [run["details"]["result"].get("expired", 0) for run in database.ledger()]
    assert sum(counts) == 250


def test_a_cleanup_that_is_killed_leaves_neither_tombstone_nor_delete_or_both(
    cleaning: Cleaning, containers: Containers, database: Database, engine: Engine
) -> None:
    expired = cleaning.add_expired(150)
    # The second batch of 100 waits for this one: locked rows are passed over, but not in the outbox.
    second = cleanup_task_id(expired[120], None)
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO task_outbox (task_id, task_name) VALUES (:id, 'x')"), {"id": second}
        )
        killed = containers.start(module="cronjobs cleanup")
        eventually(database.waits, what="the second batch waits")
        killed.popen.send_signal(signal.SIGKILL)
        killed.wait()
        connection.rollback()
    eventually(lambda: not database.sessions("state = 'idle in transaction'"), what="it is rolled back")
    tombstones = {
        row["id"] for row in database.rows("SELECT id FROM lab_instances WHERE stop_requested_at IS NOT NULL")
    }
    assert tombstones == {row["lab_instance_id"] for row in cleaning.outbox()} == {*expired[:100]}
    assert cleaning.run() == {"deletes_published": 50, "expired": 50}
    assert sorted(cleaning.deleted()) == expired


def test_what_the_broker_does_not_take_is_left_to_the_sweep_of_the_outbox(
    cleaning: Cleaning, broker: Broker, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    expired = cleaning.add_expired(3)
    broker.channel().queue_delete(topology.QUEUE_HIGH)
    assert cleaning.run() == {"deletes_published": 0, "deletes_waiting": 3, "expired": 3}
    (said,) = [vars(line) for line in caplog.records if vars(line).get("action") == "deletes_wait"]
    assert said["deletes"] == 3
    assert [row["lab_instance_id"] for row in cleaning.outbox()] == expired
    # Not even a long outage doubles what waits.
    database.rows("UPDATE lab_instances SET stop_requested_at = now() - interval '1 hour'")
    assert cleaning.run() == {"deletes_published": 0}
    broker.declare()
    database.rows("UPDATE task_outbox SET next_attempt_at = now()")
    cleaning.add_expired()
    assert cleaning.run()["expired"] == 1
    assert cleaning.deleted()[:3] == expired


def test_a_backends_own_delete_and_the_cleanup_make_one_each(
    cleaning: Cleaning, engine: Engine, labs: LabStore
) -> None:
    (lab,) = cleaning.add_expired()
    with engine.begin() as connection:
        outbox.add(connection, DeleteLabPod(lab_instance_id=lab))
    labs.request_stop(lab)
    assert cleaning.run() == {"deletes_published": 0}


def test_few_rows_are_locked_at_a_time(
    cleaning: Cleaning, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanup, "BATCH", 10)
    cleaning.add_expired(12)
    free: list[int] = []
    real = cleanup._delete

    def look(lab: DueLab) -> TaskRequest | None:
        free.append(len(database.rows("SELECT id FROM lab_instances FOR UPDATE SKIP LOCKED")))
        return real(lab)

    monkeypatch.setattr(cleanup, "_delete", look)
    assert cleaning.run()["expired"] == 12
    assert free == [2] * 10 + [10] * 2
