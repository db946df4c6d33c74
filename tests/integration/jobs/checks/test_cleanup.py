"""Which labs a cleanup ends, how, and what the command says."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import Engine

from cronjobs.__main__ import main
from dispatcher import CreateLabPod, TaskRequest, outbox
from dispatcher.message.envelope import decode
from dispatcher.tasks import CLEANUP_TIMEOUT_LABS, CREATE_LAB_POD, DELETE_LAB_POD
from jobs.config.lifetimes import LifeSettings
from jobs.container.consumer import Settlement
from jobs.container.run_task import run_task
from jobs.database import ledger
from jobs.database.due_rows import announce_ends
from jobs.database.ledger import Ending
from jobs.failures import Failure
from tests.support.broker.rabbitmq import Broker
from tests.support.cluster.fake_cluster import FakeCluster
from tests.support.database.odd_rows import ODD_TIMES, old_rows_may_have_any_time
from tests.support.database.postgres import Database
from tests.support.factories import IMAGE, make_record
from tests.support.labs.cleaning import Cleaning, lab_of
from tests.support.labs.creates import add_pod, delivery_of, name_of


def test_only_expired_running_labs_get_a_delete_and_only_once(cleaning: Cleaning, database: Database) -> None:
    (expired,) = cleaning.add_expired()
    cleaning.add_expired(status="PENDING")
    cleaning.add_expired(status="FAILED")
    cleaning.add_expired(stop_requested_at="now")
    database.add_lab(status="RUNNING")
    assert cleaning.run() == {"deletes_published": 1, "expired": 1}
    assert cleaning.run() == {"deletes_published": 0}
    (message,) = cleaning.deletes()
    arguments = {"lab_instance_id": expired, "k8s_pod_name": "pod", "force": True}
    assert json.loads(message.body)[1] == arguments
    assert database.lab(expired)["stop_requested_at"] is not None
    assert database.lab(expired)["status"] == "RUNNING"
    assert cleaning.outbox() == []


def stop_since(cleaning: Cleaning, lab: int, minutes: int) -> None:
    cleaning.change(lab, stop_requested_at=f"now() - interval '{minutes} minutes'")


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_a_stop_that_did_nothing_for_long_is_asked_for_again_under_another_id(
    cleaning: Cleaning, database: Database, caplog: pytest.LogCaptureFixture, status: str
) -> None:
    caplog.set_level("INFO", "jobs.checks.cleanup")
    (lab,) = cleaning.add_expired()
    cleaning.run()
    database.rows("UPDATE lab_instances SET status = %s WHERE id = %s", status, lab)
    stop_since(cleaning, lab, 16)
    old = database.lab(lab)["stop_requested_at"]
    assert cleaning.run() == {"deletes_published": 0}, "its delete still waits"
    (first,) = cleaning.deletes()
    assert cleaning.run() == {"deletes_published": 1, "stop_repeated": 1}
    assert cleaning.run() == {"deletes_published": 0}
    assert database.lab(lab)["stop_requested_at"] - old >= timedelta(minutes=15)
    (second,) = cleaning.deletes()
    assert lab_of(first) == lab_of(second) == lab
    assert first.headers["id"] != second.headers["id"]
    actions = [getattr(record, "action", "") for record in caplog.records]
    assert actions == ["lab_expired", "stops_wait", "lab_stop_repeated"]
    stop_since(cleaning, lab, 16)
    cleaning.run()
    (third,) = cleaning.deletes()
    assert third.headers["id"] not in (first.headers["id"], second.headers["id"])


def test_a_stop_that_is_under_way_or_done_is_not_repeated(cleaning: Cleaning, broker: Broker) -> None:
    for status, minutes in (("RUNNING", 14), ("PENDING", 14), ("STOPPED", 60), ("FAILED", 60)):
        (lab,) = cleaning.add_expired(status=status)
        stop_since(cleaning, lab, minutes)
    assert cleaning.run() == {"deletes_published": 0}
    assert broker.is_empty()


def test_a_lab_that_is_too_old_ends_whatever_its_row_says(cleaning: Cleaning, database: Database) -> None:
    old, young = (database.add_lab(status="RUNNING", expires_at="infinity") for _ in range(2))
    cleaning.change(old, started_at="now() - interval '121 minutes'")
    cleaning.change(young, started_at="now() - interval '119 minutes'")
    before = database.lab(young)
    cleaning.set(max_age_minutes=0)
    assert cleaning.run() == {"deletes_published": 0}
    cleaning.set(max_age_minutes=120)
    assert cleaning.run() == {"deletes_published": 1, "max_age": 1}
    assert cleaning.deleted() == [old]
    # What the setting does is undone with it, and no end that a student saw is written over.
    assert database.lab(young) == before


def test_a_lab_that_never_became_usable_says_so_and_what_is_left_of_it_goes(
    cleaning: Cleaning, database: Database
) -> None:
    late, early = cleaning.add_pending(61), cleaning.add_pending(59)
    assert cleaning.run() == {"deletes_published": 1, "overdue": 1}
    row = database.lab(late)
    error = Failure.NEVER_STARTED.error(minutes=60)
    assert (row["status"], row["error_category"], row["error_message"]) == (
        "FAILED",
        error.category.value,
        error.sentence,
    )
    assert row["failed_at"] is not None
    assert database.lab(early)["status"] == "PENDING"
    (news,) = database.rows("SELECT * FROM notifications")
    assert (news["lab_instance_id"], news["cause"], news["told"]) == (late, "never_started", "admin")
    assert cleaning.run() == {"deletes_published": 0}
    assert cleaning.deleted() == [late]


def test_the_delete_of_what_is_left_keeps_the_reason_in_the_row(
    cleaning: Cleaning, database: Database, cluster: FakeCluster
) -> None:
    late = cleaning.add_pending()
    add_pod(cluster, late, name_of(late))
    cleaning.run()
    (message,) = cleaning.deletes()
    task = decode(message.body, message.properties)
    assert run_task(cleaning.connections, delivery_of(task), {}) is Settlement.ACK
    assert cluster.objects == {}
    row = database.lab(late)
    assert (row["status"], row["stop_requested_at"]) == ("FAILED", None)
    run = database.ledger()[-1]
    assert (run["task_name"], run["outcome"]) == (DELETE_LAB_POD, "succeeded")
    assert run["details"]["result"] == {"lab_instance_id": late, "status": "FAILED"}


@pytest.mark.parametrize("minutes_ago", [None, 30, 61], ids=["is to come", "has come", "is long over"])
def test_a_lab_that_the_outbox_holds_for_later_is_waited_for_from_then(
    cleaning: Cleaning, database: Database, engine: Engine, minutes_ago: int | None
) -> None:
    lab = cleaning.add_pending(600)
    task = CreateLabPod(lab_instance_id=lab, lab_id=7, student_id=42, docker_image=IMAGE)
    eta = datetime.now(timezone.utc) + timedelta(hours=1)
    with engine.begin() as connection:
        outbox.add(connection, TaskRequest(task, eta=eta))
    if minutes_ago is not None:
        moved = "UPDATE task_outbox SET eta = now() - make_interval(mins => %s), next_attempt_at = 'infinity'"
        database.rows(moved, minutes_ago)
    found = cleaning.run()
    assert ("overdue" in found) is (minutes_ago == 61)


def test_a_lab_that_may_wait_on_the_ladder_is_spared_until_its_own_end(
    cleaning: Cleaning, database: Database, broker: Broker
) -> None:
    ahead, met = cleaning.add_pending(600, met=False), cleaning.add_pending(600)
    task = CreateLabPod(lab_instance_id=ahead, lab_id=7, student_id=42, docker_image=IMAGE)
    cleaning.connections.publisher.publish_task(TaskRequest(task, countdown=3600).to_message())
    assert broker.delayed() == 1
    assert cleaning.run() == {"deletes_published": 1, "overdue": 1}
    assert (database.lab(ahead)["status"], database.lab(met)["status"]) == ("PENDING", "FAILED")
    database.expire(ahead)
    assert cleaning.run() == {"deletes_published": 1, "overdue": 1}


def test_a_lab_without_a_message_is_overdue_although_no_container_met_it(cleaning: Cleaning) -> None:
    cleaning.add_pending(61, met=False)
    cleaning.add_delayed_retry()
    assert cleaning.run() == {"deletes_published": 1, "overdue": 1}


def test_a_lab_that_a_container_is_at_is_left_to_it(cleaning: Cleaning) -> None:
    lab = cleaning.add_pending(600)
    assert cleaning.connections.labs.begin(make_record(lab, task_name=CREATE_LAB_POD))
    assert cleaning.run() == {"deletes_published": 0}


def test_old_rows_are_forgotten_some_at_a_time(
    cleaning: Cleaning, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancelled(task_id: str, days: int, outcome: str | None = None) -> None:
        statement = "INSERT INTO task_cancellations VALUES (%s, now() - make_interval(days => %s))"
        database.rows(statement, task_id, days)
        if outcome:
            cleaning.connections.labs.record(make_record(task_id=task_id), Ending(outcome))

    cancelled("revoked", 31, "revoked")
    cancelled("done all the same", 31, "succeeded")
    cancelled("lately", 29, "revoked")
    cancelled("comes again", 31, "retried")
    cancelled("waits for its time", 3000)
    cancelled("came never", 3200)
    monkeypatch.setattr(ledger, "FORGET_ROWS", 2)
    left = []
    for _ in range(3):
        cleaning.run()
        left.append({row["task_id"] for row in database.rows("SELECT task_id FROM task_cancellations")})
    assert len(left[0]) == 4
    assert left[1] == left[2] == {"lately", "comes again", "waits for its time"}


def test_runs_of_periodic_tasks_are_kept_for_some_days(
    cleaning: Cleaning, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = database.add_lab(status="RUNNING")
    for name, about in ((CLEANUP_TIMEOUT_LABS, None), (CLEANUP_TIMEOUT_LABS, lab), (CREATE_LAB_POD, None)):
        for days in (16, 15, 15, 13):
            record = make_record(about, task_name=name, task_id=f"{days} days old")
            cleaning.connections.labs.record(record, Ending("succeeded"))
    database.rows("UPDATE task_ledger SET claimed_at = now() - CAST(left(task_id, 7) AS interval)")
    monkeypatch.setattr(ledger, "FORGET_ROWS", 2)
    kept = []
    for _ in range(3):
        cleaning.run()
        kept.append(len(database.ledger()))
    assert kept == [10, 9, 9]
    about_none = "task_name = %s AND lab_instance_id IS NULL"
    (left,) = database.rows(f"SELECT task_id FROM task_ledger WHERE {about_none}", CLEANUP_TIMEOUT_LABS)
    assert left["task_id"] == "13 days old"


@pytest.mark.parametrize("pod", ["", "Not_A_Name", "x" * 300])
def test_one_odd_row_does_not_keep_the_others_running(cleaning: Cleaning, pod: str) -> None:
    (odd,) = cleaning.add_expired(k8s_pod_name=pod)
    (ordinary,) = cleaning.add_expired()
    assert cleaning.run()["deletes_published"] == 2
    assert cleaning.deleted() == [odd, ordinary]


def test_a_row_that_no_task_can_be_about_does_not_keep_the_others_running(cleaning: Cleaning) -> None:
    cleaning.add_expired(id=0)
    (ordinary,) = cleaning.add_expired()
    assert cleaning.run() == {"deletes_published": 1, "expired": 1}
    assert cleaning.deleted() == [ordinary]


@pytest.mark.usefixtures("command")
def test_a_dry_run_prints_each_lab_with_its_reason_and_changes_nothing(
    cleaning: Cleaning, database: Database, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "jobs.checks.cleanup")
    (expired,) = cleaning.add_expired()
    overdue = cleaning.add_pending()
    assert main(["cleanup", "--dry-run"]) == 0
    said = {vars(line)["lab_instance_id"]: vars(line)["reason"] for line in caplog.records}
    assert said == {expired: "expired", overdue: "overdue"}
    assert broker.is_empty()
    assert cleaning.outbox() == []
    assert database.lab(expired)["stop_requested_at"] is None
    assert database.lab(overdue)["status"] == "PENDING"


@pytest.mark.usefixtures("command")
def test_the_command_cleans_up(cleaning: Cleaning, database: Database) -> None:
    cleaning.add_expired()
    assert main(["cleanup"]) == 0
    assert len(cleaning.deletes()) == 1
    assert database.outcomes() == ["succeeded"]


@pytest.mark.usefixtures("cleaning")
def test_the_command_says_by_its_exit_code_what_is_wrong(command: pytest.MonkeyPatch) -> None:
    command.setattr("jobs.database.connection.BLIP_S", 0.2)
    command.setenv("DATABASE_URL", "postgresql://u@127.0.0.1:1/db")
    assert main(["cleanup"]) == 69
    command.setenv("DATABASE_URL", "mysql://x")
    assert main(["cleanup"]) == 78


def test_labs_with_odd_times_end_by_what_is_known_of_them(cleaning: Cleaning, database: Database) -> None:
    old_rows_may_have_any_time(database)
    past, future = ODD_TIMES[:3], ODD_TIMES[3:]
    expired = [cleaning.add_expired(k8s_pod_name="")[0] for _ in ODD_TIMES]
    pending = [cleaning.add_pending() for _ in ODD_TIMES]
    for moment, lab, waiting in zip(ODD_TIMES, expired, pending, strict=True):
        times = dict.fromkeys(("created_at", "started_at", "max_expires_at"), f"timestamptz '{moment}'")
        cleaning.change(lab, **times, expires_at=f"timestamptz '{moment}'")
        cleaning.change(
            waiting, created_at=f"timestamptz '{moment}'", updated_at="now() - interval '2 hours'"
        )
    ends = {"expired": len(past), "overdue": len(pending)}
    assert cleaning.run() == {"deletes_published": sum(ends.values()), **ends}
    failed = database.rows("SELECT id FROM lab_instances WHERE status = 'FAILED' ORDER BY id")
    assert [row["id"] for row in failed] == pending
    assert len(expired) - len(past) == len(future), "who never ends is not ended"
    announce_ends(cleaning.connections.labs, LifeSettings())
