from __future__ import annotations

import json
import threading
from datetime import timedelta

import pytest

from cronjobs.__main__ import main
from dispatcher import PublishError, topology
from dispatcher.message import TaskMessage
from dispatcher.publisher import Publisher
from jobs.labs import LabStore
from jobs.ledger import Ending
from jobs.periodic import cleanup as cleanup_labs
from jobs.periodic.cleanup import cleanup_expired, find_expired
from tests.support.factories import make_record
from tests.support.postgres import Database
from tests.support.rabbitmq import Broker, Message


def add_expired(database: Database, count: int = 1, **columns: str) -> list[int]:
    labs = [database.add_lab(**{"status": "RUNNING", "k8s_pod_name": "pod", **columns}) for _ in range(count)]
    for lab in labs:
        database.expire(lab)
    return labs


def deletes(broker: Broker) -> list[Message]:
    return [broker.take(topology.QUEUE_HIGH) for _ in range(broker.depth(topology.QUEUE_HIGH))]


def lab_of(message: Message) -> int:
    return int(json.loads(message.body)[1]["lab_instance_id"])


def test_only_expired_running_labs_get_a_delete_and_only_once(
    database: Database, labs: LabStore, broker: Broker, publisher: Publisher
) -> None:
    (expired,) = add_expired(database)
    add_expired(database, status="PENDING")
    add_expired(database, status="FAILED")
    add_expired(database, stop_requested_at="now")
    database.add_lab(status="RUNNING")
    assert cleanup_expired(labs, publisher) == 1
    assert cleanup_expired(labs, publisher) == 0
    (message,) = deletes(broker)
    arguments = {"lab_instance_id": expired, "k8s_pod_name": "pod", "force": True}
    assert json.loads(message.body)[1] == arguments
    assert database.lab(expired)["stop_requested_at"] is not None
    assert database.lab(expired)["status"] == "RUNNING"


def stop_since(database: Database, lab: int, minutes: int) -> None:
    statement = "UPDATE lab_instances SET stop_requested_at = now() - make_interval(mins => %s) WHERE id = %s"
    database.rows(statement, minutes, lab)


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_a_stop_that_did_nothing_for_long_is_asked_for_again_under_another_id(
    database: Database,
    labs: LabStore,
    broker: Broker,
    publisher: Publisher,
    caplog: pytest.LogCaptureFixture,
    status: str,
) -> None:
    caplog.set_level("INFO", "jobs.periodic.cleanup")
    (lab,) = add_expired(database, status="RUNNING")
    assert cleanup_expired(labs, publisher) == 1
    database.rows("UPDATE lab_instances SET status = %s WHERE id = %s", status, lab)
    stop_since(database, lab, 16)
    assert [(found.id, found.stop_requested_at is None) for found in find_expired(labs)] == [(lab, False)]
    old = database.lab(lab)["stop_requested_at"]
    assert cleanup_expired(labs, publisher) == 1
    assert cleanup_expired(labs, publisher) == 0
    assert database.lab(lab)["stop_requested_at"] - old >= timedelta(minutes=15)
    first, second = deletes(broker)
    assert lab_of(first) == lab_of(second) == lab
    assert first.headers["id"] != second.headers["id"]
    assert [getattr(record, "action", "") for record in caplog.records] == ["lab_expired", "stop_repeated"]
    stop_since(database, lab, 16)
    assert cleanup_expired(labs, publisher) == 1
    (third,) = deletes(broker)
    assert third.headers["id"] not in (first.headers["id"], second.headers["id"])


def test_a_stop_of_a_lab_that_never_expires_is_repeated_too(
    database: Database, labs: LabStore, publisher: Publisher
) -> None:
    lab = database.add_lab(status="RUNNING")
    stop_since(database, lab, 16)
    assert cleanup_expired(labs, publisher) == 1


def test_a_stop_that_is_under_way_or_done_is_not_repeated(
    database: Database, labs: LabStore, broker: Broker, publisher: Publisher
) -> None:
    for status, minutes in (("RUNNING", 14), ("PENDING", 14), ("STOPPED", 60), ("FAILED", 60)):
        (lab,) = add_expired(database, status=status)
        stop_since(database, lab, minutes)
    assert find_expired(labs) == []
    assert cleanup_expired(labs, publisher) == 0
    assert broker.is_empty()


def test_cancellations_of_tasks_long_over_are_forgotten(
    database: Database, labs: LabStore, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancelled(task_id: str, days: int, outcome: str | None = None) -> None:
        statement = "INSERT INTO task_cancellations VALUES (%s, now() - make_interval(days => %s))"
        database.rows(statement, task_id, days)
        if outcome:
            labs.record(make_record(task_id=task_id), Ending(outcome))

    cancelled("revoked", 31, "revoked")
    cancelled("done all the same", 31, "succeeded")
    cancelled("lately", 29, "revoked")
    cancelled("comes again", 31, "retried")
    cancelled("waits for its time", 3000)
    cancelled("came never", 3200)
    monkeypatch.setattr(cleanup_labs, "_FORGET", 2)
    left = []
    for _ in range(3):
        cleanup_expired(labs, publisher)
        left.append({row["task_id"] for row in database.rows("SELECT task_id FROM task_cancellations")})
    assert len(left[0]) == 4
    assert left[1] == left[2] == {"lately", "comes again", "waits for its time"}


def test_few_rows_are_locked_while_their_deletes_are_published(
    database: Database, labs: LabStore, broker: Broker, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_expired(database, 12)
    unlocked: list[int] = []
    real = Publisher.publish_task

    def look(self: Publisher, task: TaskMessage) -> None:
        free = database.rows("SELECT id FROM lab_instances FOR UPDATE SKIP LOCKED")
        unlocked.append(len(free))
        real(self, task)

    monkeypatch.setattr(Publisher, "publish_task", look)
    assert cleanup_expired(labs, publisher) == 12
    assert unlocked == [2] * 10 + [10] * 2


def test_two_cleanups_at_once_publish_one_delete_for_each_lab(
    database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanup_labs, "BATCH", 3)
    expired = add_expired(database, 20)

    def clean() -> None:
        store = LabStore(database.url, application_name="cleanup")
        publisher = Publisher(broker.settings)
        cleanup_expired(store, publisher)
        store.close()
        publisher.close()

    threads = [threading.Thread(target=clean) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(lab_of(message) for message in deletes(broker)) == expired


def test_a_crash_between_publish_and_commit_publishes_the_same_task_again(
    database: Database, labs: LabStore, broker: Broker, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_expired(database, 2)

    class Killed(BaseException):
        pass

    real = Publisher.publish_task
    published: list[str] = []

    def die_after_the_second(self: Publisher, task: TaskMessage) -> None:
        real(self, task)
        published.append(task.id)
        if len(published) == 2:
            raise Killed

    monkeypatch.setattr(Publisher, "publish_task", die_after_the_second)
    with pytest.raises(Killed):
        cleanup_expired(labs, publisher)
    assert len(find_expired(labs)) == 2
    monkeypatch.undo()
    assert cleanup_expired(labs, publisher) == 2
    ids = [message.headers["id"] for message in deletes(broker)]
    assert sorted(ids) == sorted(published * 2)


def test_a_delete_that_is_not_confirmed_leaves_the_lab_for_the_next_cleanup(
    database: Database, labs: LabStore, broker: Broker, publisher: Publisher
) -> None:
    (expired,) = add_expired(database)
    broker.channel().queue_delete(topology.QUEUE_HIGH)
    with pytest.raises(PublishError):
        cleanup_expired(labs, publisher)
    assert database.lab(expired)["stop_requested_at"] is None
    broker.declare()
    assert cleanup_expired(labs, publisher) == 1


@pytest.mark.parametrize("pod", ["", "Not_A_Name", "x" * 300])
def test_one_odd_row_does_not_keep_the_others_running(
    database: Database, labs: LabStore, broker: Broker, publisher: Publisher, pod: str
) -> None:
    (odd,) = add_expired(database, k8s_pod_name=pod)
    (ordinary,) = add_expired(database)
    assert cleanup_expired(labs, publisher) == 2
    assert [lab_of(message) for message in deletes(broker)] == [odd, ordinary]


@pytest.fixture
def environ(database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("AMQP_URL", broker.url)
    # The command takes over the log of its process; here that is pytest's.
    monkeypatch.setattr("jobs.logs.configure", lambda _level: None)


@pytest.mark.usefixtures("environ")
def test_a_dry_run_publishes_nothing(database: Database, broker: Broker) -> None:
    (expired,) = add_expired(database)
    assert main(["cleanup", "--dry-run"]) == 0
    assert broker.is_empty()
    assert database.lab(expired)["stop_requested_at"] is None


@pytest.mark.usefixtures("environ")
def test_the_command_cleans_up(database: Database, broker: Broker) -> None:
    add_expired(database)
    assert main(["cleanup"]) == 0
    assert len(deletes(broker)) == 1


@pytest.mark.usefixtures("environ")
def test_the_command_says_by_its_exit_code_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.database.BLIP_S", 0.2)
    monkeypatch.setenv("DATABASE_URL", "postgresql://u@127.0.0.1:1/db")
    assert main(["cleanup"]) == 69
    monkeypatch.setenv("DATABASE_URL", "mysql://x")
    assert main(["cleanup"]) == 78
