"""What keeps a cleanup from emptying the platform, with clocks that are a year off, both ways."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest

from cronjobs import outbox
from cronjobs.__main__ import main
from dispatcher.broker import topology
from jobs.config.lifetimes import LifeSettings
from jobs.database.due_rows import announce_ends
from jobs.errors import PermanentError
from jobs.failures import Failure
from tests.support.broker.rabbitmq import Broker
from tests.support.containers.container import Containers
from tests.support.database.postgres import Database
from tests.support.labs.cleaning import Cleaning
from tests.support.labs.notifying import EVENTS, Platform

YEAR_S = 365 * 86_400
SHIPPED = {"cleanup_always": 5, "cleanup_max_share": 0.5}


def ended(database: Database) -> int:
    (found,) = database.rows("SELECT count(*) FROM lab_instances WHERE stop_requested_at IS NOT NULL")
    return int(found["count"])


@pytest.mark.parametrize("skew_s", [YEAR_S, -YEAR_S], ids=["ahead", "behind"])
def test_a_container_whose_clock_is_wrong_ends_nothing(
    cleaning: Cleaning, containers: Containers, database: Database, skew_s: int
) -> None:
    cleaning.add_expired(2)
    # The store answers whatever the clock is: what is signed is tried again by its own.
    code, container = containers.run(
        module="tests.support.containers.skewed_job cronjobs cleanup", TEST_SKEW_S=skew_s
    )
    assert code == 1
    assert ended(database) == 0
    assert cleaning.outbox() == []
    (refused,) = [line for line in container.lines() if line.get("action") == "cleanup_refused"]
    assert abs(refused["apart_s"] - YEAR_S) < 60
    assert refused["level"] == "ERROR"
    assert "--force" in refused["message"]
    now = datetime.now(timezone.utc)
    assert abs(datetime.fromisoformat(refused["database_clock"]) - now).total_seconds() < 60
    assert abs((datetime.fromisoformat(refused["container_clock"]) - now).total_seconds() - skew_s) < 60
    (run,) = database.ledger()
    assert (run["outcome"], run["details"]["cause"]) == ("failed", Failure.CLOCKS_DIFFER.cause)


def test_a_database_in_a_year_that_datetime_does_not_know_ends_nothing(
    cleaning: Cleaning, database: Database
) -> None:
    cleaning.add_expired(2)
    database.rows(
        "CREATE SCHEMA far; CREATE FUNCTION far.clock_timestamp() RETURNS timestamptz LANGUAGE sql"
        " AS $$ SELECT timestamptz '12026-11-21 10:00:00+00' $$"
    )
    first = f"{database.url}?options=-csearch_path%3Dfar,pg_catalog,public"
    another = cleaning.another(database_url=first)
    with pytest.raises(PermanentError, match="12026-11-21T10:00:00") as refused:
        another.run()
    another.close()
    assert refused.value.failure is Failure.CLOCKS_DIFFER
    assert ended(database) == 0
    (news,) = database.rows("SELECT cause FROM notifications")
    assert news["cause"] == Failure.CLOCKS_DIFFER.cause


def shift_all(database: Database, what: str) -> None:
    """As a database sees all labs whose clock is a year ahead: every time is a year earlier."""
    database.rows(
        f"UPDATE lab_instances SET expires_at = expires_at {what}, created_at = created_at {what},"
        f" max_expires_at = max_expires_at {what}, started_at = started_at {what}"
    )


def test_a_clock_a_year_ahead_everywhere_ends_nothing(
    cleaning: Cleaning, database: Database, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    cleaning.set(**SHIPPED)
    for _ in range(20):
        database.add_lab(status="RUNNING", started_at="now")
    for _ in range(10):
        cleaning.add_pending(1)
    assert cleaning.run() == {"deletes_published": 0}
    shift_all(database, "- interval '1 year'")
    with pytest.raises(PermanentError, match="30 of 30 live labs would end") as refused:
        cleaning.run()
    assert refused.value.failure is Failure.TOO_MANY_AT_ONCE
    assert ended(database) == 0
    assert {row["status"] for row in database.rows("SELECT status FROM lab_instances")} == {
        "PENDING",
        "RUNNING",
    }
    assert broker.is_empty()
    (said,) = [vars(line) for line in caplog.records if vars(line).get("action") == "cleanup_refused"]
    assert (said["unannounced"], said["live"], said["allowed"]) == (30, 30, 15)


def test_a_clock_a_year_behind_ends_nothing(cleaning: Cleaning, database: Database) -> None:
    cleaning.set(**SHIPPED)
    cleaning.add_expired(20)
    shift_all(database, "+ interval '1 year'")
    assert cleaning.run() == {"deletes_published": 0}
    assert ended(database) == 0


@pytest.mark.parametrize("max_age_minutes", [1440, 25], ids="max age {}".format)
def test_a_class_that_was_warned_ends_at_once(
    cleaning: Cleaning, database: Database, max_age_minutes: int
) -> None:
    cleaning.set(**SHIPPED, max_age_minutes=max_age_minutes)
    for lab in cleaning.add_expired(20):
        cleaning.warn(lab, minutes_ago=14)
        # Set a moment ago, too late to be what anybody was warned of.
        cleaning.change(lab, started_at="now() - interval '30 minutes'")
    assert cleaning.run() == {"deletes_published": 20, "expired": 20}
    assert ended(database) == 20


def test_a_class_whose_warnings_the_broker_did_not_take_ends_all_the_same(
    cleaning: Cleaning, database: Database
) -> None:
    cleaning.set(**SHIPPED)
    for lab in cleaning.add_expired(20):
        cleaning.warn(lab, minutes_ago=14)
    database.rows("UPDATE notifications SET published_at = NULL")
    assert cleaning.run() == {"deletes_published": 20, "expired": 20}


def test_a_class_that_nobody_is_to_warn_ends_at_once(cleaning: Cleaning, database: Database) -> None:
    cleaning.add_expired(20)
    cleaning.set(cleanup_always=5, warn_minutes=[])
    with pytest.raises(PermanentError, match="cleanup_max_share must be 1"):
        cleaning.run()
    assert ended(database) == 0
    cleaning.set(cleanup_always=5, warn_minutes=[], cleanup_max_share=1)
    assert cleaning.run() == {"deletes_published": 20, "expired": 20}


@pytest.mark.parametrize("own_end", ["now() + interval '3 hours'", "'infinity'"])
def test_a_class_ends_by_its_age_alone_only_where_it_has_no_end_of_its_own(
    cleaning: Cleaning, database: Database, own_end: str
) -> None:
    cleaning.set(**SHIPPED, max_age_minutes=30)
    for _ in range(20):
        lab = database.add_lab(status="RUNNING")
        cleaning.change(lab, expires_at=own_end, started_at="now() - interval '20 minutes'")
    # The sweep warns within a minute of the setting's change; eleven minutes pass.
    assert announce_ends(cleaning.connections.labs, LifeSettings(max_age_minutes=30)) == 20
    database.rows(
        "UPDATE notifications SET published_at = now(), created_at = created_at - interval '11 minutes',"
        " occasion = occasion - interval '11 minutes'"
    )
    earlier = (
        "started_at = started_at - interval '11 minutes', expires_at = expires_at - interval '11 minutes'"
    )
    database.rows(f"UPDATE lab_instances SET {earlier}")
    if own_end == "'infinity'":
        assert cleaning.run() == {"deletes_published": 20, "max_age": 20}
        return
    before = database.rows("SELECT * FROM lab_instances ORDER BY id")
    with pytest.raises(PermanentError, match=r"20 of 20 live labs .* own end; at most 10 may"):
        cleaning.run()
    cleaning.set(**SHIPPED)
    assert cleaning.run() == {"deletes_published": 0}
    assert database.rows("SELECT * FROM lab_instances ORDER BY id") == before


@pytest.mark.parametrize("how", ["late", "of another end"])
def test_a_warning_that_did_not_help_counts_for_nothing(cleaning: Cleaning, how: str) -> None:
    cleaning.set(**SHIPPED)
    for lab in cleaning.add_expired(7):
        cleaning.warn(lab, minutes_ago=2 if how == "late" else 14)
        if how == "of another end":
            cleaning.change(lab, expires_at="expires_at - interval '10 seconds'")
    with pytest.raises(PermanentError, match="7 of 7"):
        cleaning.run()


@pytest.mark.parametrize(
    ("columns", "goes_on"),
    [
        ({}, False),
        ({"extended_to": "expires_at"}, True),
        ({"started_at": "now() - interval '6 minutes'"}, True),
    ],
    ids=["a bad update of all ends", "extended a moment before", "short from the beginning"],
)
def test_a_warning_that_came_late_counts_where_the_end_was_known(
    cleaning: Cleaning, columns: dict[str, str], goes_on: bool
) -> None:
    cleaning.set(**SHIPPED)
    for lab in cleaning.add_expired(7):
        cleaning.change(lab, started_at="now() - interval '1 hour'")
        cleaning.warn(lab, minutes_ago=5)
        if columns:
            cleaning.change(lab, **columns)
    if goes_on:
        assert cleaning.run() == {"deletes_published": 7, "expired": 7}
        return
    with pytest.raises(PermanentError, match="7 of 7"):
        cleaning.run()


@pytest.mark.parametrize(("expired", "live", "goes_on"), [(5, 0, True), (7, 5, False), (6, 6, True)])
def test_some_may_always_end_and_half_of_many(
    cleaning: Cleaning, database: Database, expired: int, live: int, goes_on: bool
) -> None:
    cleaning.set(**SHIPPED)
    cleaning.add_expired(expired)
    for _ in range(live):
        database.add_lab(status="RUNNING")
    # One that is being stopped is no live lab, and its stop no new end.
    (stopping,) = cleaning.add_expired()
    cleaning.change(stopping, stop_requested_at="now() - interval '1 hour'")
    if goes_on:
        assert cleaning.run() == {
            "deletes_published": expired + 1,
            "expired": expired,
            "stop_repeated": 1,
        }
        return
    with pytest.raises(PermanentError, match=f"{expired} of {expired + live} live labs"):
        cleaning.run()


def test_labs_that_wait_in_a_queue_are_not_given_up_all_at_once(
    cleaning: Cleaning, database: Database
) -> None:
    cleaning.set(**SHIPPED)
    for _ in range(7):
        cleaning.add_pending()
    with pytest.raises(PermanentError, match="7 of 7"):
        cleaning.run()


def test_force_goes_on_and_says_so(cleaning: Cleaning, caplog: pytest.LogCaptureFixture) -> None:
    cleaning.set(**SHIPPED)
    cleaning.add_expired(7)
    assert cleaning.run(force=True)["deletes_published"] == 7
    (said,) = [vars(line) for line in caplog.records if vars(line).get("action") == "cleanup_forced"]
    assert said["unannounced"] == 7


def test_a_dry_run_says_what_the_brake_would_say(
    cleaning: Cleaning, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    cleaning.set(**SHIPPED)
    cleaning.add_expired(7)
    found: dict[str, Any] = cleaning.run(dry_run=True)
    assert found == {"would_delete": 7, "expired": 7, "would_refuse": "too_many_at_once"}
    assert "7 of 7 live labs would end" in caplog.text
    assert database.rows("SELECT * FROM notifications") == []


def test_the_administrator_is_told_once_an_hour(
    cleaning: Cleaning, platform: Platform, command: pytest.MonkeyPatch
) -> None:
    del command  # the environment
    platform.bind_events("platform.#")
    cleaning.set(**SHIPPED)
    cleaning.add_expired(7)
    assert [main(["cleanup"]) for _ in range(2)] == [1, 1]
    outbox.sweep(dry_run=False)
    message = platform.broker.take(EVENTS)
    assert message.routing_key == "platform.cleanup_refused.admin"
    event = json.loads(message.body)
    assert (event["type"], event["cause"], event["unannounced"], event["lab_instance_id"]) == (
        "platform.cleanup_refused",
        "too_many_at_once",
        7,
        None,
    )
    assert platform.broker.is_empty(EVENTS, topology.QUEUE_HIGH)
    platform.database.rows("UPDATE notifications SET occasion = occasion - interval '1 hour'")
    assert main(["cleanup"]) == 1
    assert len(platform.database.rows("SELECT * FROM notifications")) == 2


def test_the_container_that_is_refused_tells_of_it_itself(cleaning: Cleaning, database: Database) -> None:
    cleaning.set(**SHIPPED)
    cleaning.add_expired(7)
    for _ in range(2):
        with pytest.raises(PermanentError):
            cleaning.run()
    (news,) = database.rows("SELECT id FROM notifications")
    assert cleaning.connections.notifications == [news["id"]]
