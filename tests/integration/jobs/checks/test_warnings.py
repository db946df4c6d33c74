"""What a student is told before a lab ends, once for each end and each warning."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from cronjobs import outbox
from cronjobs.outbox import NOTIFY_TIMEOUT_S
from dispatcher import Dispatcher
from jobs.config.lifetimes import LifeSettings
from jobs.database.due_rows import announce_ends
from jobs.database.lab_store import LabStore
from jobs.notify.notifications import DELIVERY_S
from tests.support.containers.container import Containers
from tests.support.database.postgres import Database
from tests.support.labs.cleaning import Cleaning
from tests.support.labs.notifying import EVENTS, Platform
from tests.support.store import Bucket

WARN = LifeSettings(warn_minutes=[15, 5])


def add_ending(database: Database, minutes: float, **columns: Any) -> int:
    lab = database.add_lab(**{"status": "RUNNING", **columns})
    end_in(database, lab, minutes)
    return lab


def end_in(database: Database, lab: int, minutes: float) -> None:
    moved = "UPDATE lab_instances SET expires_at = now() + make_interval(secs => %s) WHERE id = %s"
    database.rows(moved, 60 * minutes, lab)


def causes(database: Database) -> list[str]:
    return [row["cause"] for row in database.rows("SELECT cause FROM notifications ORDER BY id")]


def test_each_warning_is_given_once_and_only_the_nearer_one_of_two(
    database: Database, labs: LabStore
) -> None:
    lab = add_ending(database, 16)
    given = []
    for minutes in (16.0, 14.9, 14.0, 5.1, 4.9, 4.0, 0.1):
        end_in(database, lab, minutes)
        # The end stays, it is the time that goes on: what was given was given of this end.
        same = "UPDATE notifications SET occasion = (SELECT expires_at FROM lab_instances WHERE id = %s)"
        database.rows(same, lab)
        given.append(announce_ends(labs, WARN))
    assert given == [0, 1, 0, 0, 1, 0, 0]
    assert causes(database) == ["ends_in_15_minutes", "ends_in_5_minutes"]
    late = add_ending(database, 3)
    assert [announce_ends(labs, WARN) for _ in range(2)] == [1, 0]
    (news,) = database.rows("SELECT * FROM notifications WHERE lab_instance_id = %s", late)
    assert news["cause"] == "ends_in_5_minutes"


@pytest.mark.parametrize(
    "columns",
    [{"status": "PENDING"}, {"status": "STOPPED"}, {"status": "FAILED"}, {"stop_requested_at": "now"}],
    ids=str,
)
def test_a_lab_that_does_not_run_or_is_being_stopped_ends_unwarned(
    database: Database, labs: LabStore, columns: dict[str, str]
) -> None:
    add_ending(database, 3, **columns)
    add_ending(database, -1)
    database.add_lab(status="RUNNING", expires_at="infinity")
    assert announce_ends(labs, WARN) == 0
    add_ending(database, 3)
    assert announce_ends(labs, replace(WARN, warn_minutes=[])) == 0
    assert announce_ends(labs, WARN) == 1


def test_an_extended_lab_is_warned_of_its_new_end(database: Database, labs: LabStore) -> None:
    lab = add_ending(database, 3)
    assert announce_ends(labs, WARN) == 1
    with Dispatcher("amqp://nowhere", database=database.url) as dispatcher:
        assert dispatcher.lab_time(lab).warnings == 1
        extended = dispatcher.extend_lab(lab, 10)
    assert extended.warnings == 0
    assert announce_ends(labs, WARN) == 1
    rows = database.rows("SELECT cause, occasion FROM notifications ORDER BY id")
    assert [row["cause"] for row in rows] == ["ends_in_5_minutes", "ends_in_15_minutes"]
    assert rows[1]["occasion"] == rows[0]["occasion"] + timedelta(minutes=10) == extended.ends_at


@pytest.mark.parametrize("minutes", [3, 60], ids="its own end in {} minutes".format)
def test_a_lab_is_warned_of_the_end_by_its_age_if_that_comes_first(
    database: Database, labs: LabStore, minutes: int
) -> None:
    lab = add_ending(database, minutes)
    database.rows("UPDATE lab_instances SET started_at = now() - interval '50 minutes' WHERE id = %s", lab)
    assert announce_ends(labs, replace(WARN, max_age_minutes=54)) == 1
    (news,) = database.rows("SELECT * FROM notifications")
    row = database.lab(lab)
    by_age = row["started_at"] + timedelta(minutes=54)
    assert news["occasion"] == min(row["expires_at"], by_age)
    # An extension counts from the lab's own end, which is not the one of which this warns.
    latest = datetime.fromisoformat(news["facts"]["latest_end_at"])
    assert abs(latest - (by_age if minutes == 60 else row["max_expires_at"])) < timedelta(milliseconds=1)
    possible = "cannot be extended any more" if minutes == 60 else "can be extended"
    assert possible in news["message"]


def test_an_end_that_was_confirmed_is_the_end_whatever_the_age_is(database: Database, labs: LabStore) -> None:
    lab = add_ending(database, 1)
    database.rows("UPDATE lab_instances SET started_at = now() - interval '50 minutes' WHERE id = %s", lab)
    with Dispatcher("amqp://nowhere", database=database.url) as dispatcher:
        confirmed = dispatcher.extend_lab(lab, 10)
    assert announce_ends(labs, replace(WARN, max_age_minutes=54)) == 1
    (news,) = database.rows("SELECT * FROM notifications")
    assert news["occasion"] == confirmed.ends_at


def test_the_event_says_when_and_whether_it_can_be_moved(
    platform: Platform, bucket: Bucket, sweeper: pytest.MonkeyPatch
) -> None:
    del sweeper  # the environment
    bucket.put("settings/lab-life.yaml", b"warn_minutes: [20]")
    platform.bind_events("lab.ends_soon.student")
    lab = add_ending(platform.database, 19.5, celery_task_id="t-1")
    outbox.sweep(dry_run=True)
    assert causes(platform.database) == []
    outbox.sweep(dry_run=False)
    message = platform.broker.take(EVENTS)
    event = json.loads(message.body)
    row = platform.database.lab(lab)
    ends = row["expires_at"].astimezone(timezone.utc)
    assert event.pop("occurred_at")
    assert event == {
        "id": f"lab-ends-soon-{lab}-ends_in_20_minutes-{ends:%Y%m%dT%H%M%S}",
        "type": "lab.ends_soon",
        "lab_instance_id": lab,
        "lab_id": 7,
        "student_id": 42,
        "cause": "ends_in_20_minutes",
        "category": None,
        "told": "student",
        "message": f"This lab ends in 20 minutes, at {ends:%H:%M} UTC. It can be extended.",
        "task_id": "t-1",
        "minutes_left": 20,
        "ends_at": ends.isoformat(timespec="milliseconds"),
        "latest_end_at": row["max_expires_at"].astimezone(timezone.utc).isoformat(timespec="milliseconds"),
    }
    assert datetime.fromisoformat(event["ends_at"]) - ends < timedelta(seconds=1)


def test_without_the_store_the_default_warnings_are_given(
    platform: Platform, sweeper: pytest.MonkeyPatch
) -> None:
    sweeper.delenv("S3_ENDPOINT")
    add_ending(platform.database, 14)
    outbox.sweep(dry_run=False)
    assert causes(platform.database) == ["ends_in_15_minutes"]


def test_a_warning_that_nobody_got_in_time_is_dropped(database: Database, labs: LabStore) -> None:
    lab = add_ending(database, 3)
    announce_ends(labs, WARN)
    database.rows("UPDATE notifications SET occasion = now() - interval '1 second'")
    database.expire(lab)
    assert announce_ends(labs, WARN) == 0
    (row,) = database.rows("SELECT next_attempt_at > '9998-01-01Z' AS over, last_error FROM notifications")
    assert row == {"over": True, "last_error": "its time was over"}


def test_a_cleanup_believes_the_warnings_that_the_sweep_gave(
    cleaning: Cleaning, platform: Platform, containers: Containers, sweeper: pytest.MonkeyPatch
) -> None:
    del containers, sweeper
    cleaning.set(cleanup_always=5)
    database = platform.database
    warned = [add_ending(database, 14.9) for _ in range(20)]
    outbox.sweep(dry_run=False)
    # A quarter of an hour later.
    later = "created_at = created_at - interval '15 minutes', occasion = occasion - interval '15 minutes'"
    database.rows(f"UPDATE notifications SET {later}")
    database.rows("UPDATE lab_instances SET expires_at = expires_at - interval '15 minutes'")
    assert cleaning.run() == {"deletes_published": 20, "expired": 20}
    assert cleaning.deleted() == warned


@pytest.mark.timeout(120)
def test_three_hundred_students_are_told_within_one_sweep(
    platform: Platform, sweeper: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del sweeper
    platform.bind_events("lab.ends_soon.student")
    platform.database.rows(
        "INSERT INTO lab_instances (lab_id, student_id, status, expires_at)"
        " SELECT 7, student, 'RUNNING', now() + interval '14 minutes' FROM generate_series(1, 300) AS student"
    )
    began = time.monotonic()
    outbox.sweep(dry_run=False)
    took_s = time.monotonic() - began
    with capsys.disabled():
        print(f"\n300 warnings, events and webhooks, in {took_s:.1f} s")
    assert platform.broker.depth(EVENTS) == len(platform.webhook.calls) == 300
    assert took_s < NOTIFY_TIMEOUT_S - DELIVERY_S
