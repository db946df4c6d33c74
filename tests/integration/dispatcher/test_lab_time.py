"""Extensions of a lab's time: how far, how often, and against whoever ends the lab at the same moment."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from dispatcher import (
    Dispatcher,
    DispatcherError,
    EndHasMoved,
    ExtensionTooLong,
    ExtensionTooShort,
    InvalidTask,
    LabIsOver,
    LabTime,
    LabUnknown,
    NotExtended,
    lab_time,
)
from dispatcher.__main__ import main
from dispatcher.testing import InMemoryDispatcher
from jobs.checks import cleanup
from jobs.database.lab_store import LabStore
from tests.support.database.odd_rows import old_rows_may_have_any_time
from tests.support.database.postgres import Database
from tests.support.labs.cleaning import Cleaning
from tests.support.waiting import HANG_S, eventually


@pytest.fixture
def dispatcher(database: Database) -> Iterator[Dispatcher]:
    with Dispatcher("amqp://nowhere", database=database.url) as dispatcher:
        yield dispatcher


@pytest.fixture
def running(database: Database) -> int:
    return database.add_lab(status="RUNNING")


def end_of(database: Database, lab: int) -> datetime:
    end: datetime = database.lab(lab)["expires_at"]
    return end


def test_an_extension_moves_the_end_and_says_where_it_is(
    dispatcher: Dispatcher, database: Database, running: int
) -> None:
    before = dispatcher.lab_time(running)
    assert (before.minutes_left, before.minutes_possible) == (119, 360)
    after = dispatcher.extend_lab(running, 30)
    assert after.ends_at == before.ends_at + timedelta(minutes=30) == end_of(database, running)
    assert (after.minutes_left, after.minutes_possible) == (149, 330)
    assert after == dispatcher.lab_time(running)
    assert (after.status, after.stopping, after.warnings) == ("RUNNING", False, 0)


def test_a_pending_lab_and_one_just_past_its_end_are_extended_too(
    dispatcher: Dispatcher, database: Database, running: int
) -> None:
    pending = database.add_lab()
    assert dispatcher.extend_lab(pending, 1).minutes_left == 120
    database.expire(running)
    assert dispatcher.lab_time(running).minutes_left == 0
    assert dispatcher.extend_lab(running, 10).minutes_left == 8
    database.expire(running)
    with pytest.raises(ExtensionTooShort, match="at least 2 minutes are needed") as refused:
        dispatcher.extend_lab(running, 1)
    assert dispatcher.extend_lab(running, refused.value.minutes_needed).minutes_left == 0


def test_no_extension_goes_beyond_the_labs_latest_end(
    dispatcher: Dispatcher, database: Database, running: int
) -> None:
    with pytest.raises(ExtensionTooLong, match="at most 360 minutes more are possible") as refused:
        dispatcher.extend_lab(running, 361)
    assert refused.value.minutes_possible == 360
    assert end_of(database, running) == refused.value.time.ends_at
    assert dispatcher.extend_lab(running, 360).minutes_possible == 0
    with pytest.raises(ExtensionTooLong, match="at most 0 minutes"):
        dispatcher.extend_lab(running, 1)
    # What a backend set higher counts, and so does a lower one that is behind already.
    database.rows("UPDATE lab_instances SET max_expires_at = expires_at + interval '59 seconds'")
    assert dispatcher.lab_time(running).minutes_possible == 0
    database.rows("UPDATE lab_instances SET max_expires_at = now()")
    with pytest.raises(ExtensionTooLong):
        dispatcher.extend_lab(running, 1)
    forever = database.add_lab(status="RUNNING", expires_at="infinity", max_expires_at="infinity")
    with pytest.raises(ExtensionTooLong):
        dispatcher.extend_lab(forever, 1)


@pytest.mark.parametrize(
    ("ends_at", "latest"),
    [
        ("2020-01-01Z", "2020-01-02Z"),
        ("-infinity", "infinity"),
        ("0044-03-15Z BC", "0044-03-16Z BC"),
    ],
)
def test_a_lab_too_far_past_its_end_is_told_that_nothing_helps(
    dispatcher: Dispatcher, database: Database, ends_at: str, latest: str
) -> None:
    old_rows_may_have_any_time(database)
    lab = database.add_lab(status="RUNNING", expires_at=ends_at, max_expires_at=latest)
    assert dispatcher.lab_time(lab).minutes_left == 0
    for minutes in (1, 525_600):
        with pytest.raises(ExtensionTooLong, match=r"would it end later than now|are possible") as refused:
            dispatcher.extend_lab(lab, minutes)
        assert refused.value.minutes_possible == 0


@pytest.mark.parametrize(
    "columns",
    [{"status": "STOPPED"}, {"status": "FAILED"}, {"status": "RUNNING", "stop_requested_at": "now"}],
    ids=str,
)
def test_a_lab_that_is_over_or_stopping_is_not_extended(
    dispatcher: Dispatcher, database: Database, columns: dict[str, str]
) -> None:
    lab = database.add_lab(**columns)
    before = end_of(database, lab)
    with pytest.raises(LabIsOver) as refused:
        dispatcher.extend_lab(lab, 5)
    assert (refused.value.time.status, refused.value.time.minutes_possible) == (columns["status"], 0)
    assert refused.value.time.stopping == ("stop_requested_at" in columns)
    assert end_of(database, lab) == before


def test_what_cannot_be_meant_is_refused_by_name(dispatcher: Dispatcher, running: int) -> None:
    for minutes in (0, -5, 1.5, "5", True, None, 10**9, 2**70):
        with pytest.raises(InvalidTask, match=r"^minutes: "):
            dispatcher.extend_lab(running, minutes)  # type: ignore[arg-type]
    for lab in (0, "1", 2**63):
        with pytest.raises(InvalidTask, match=r"^lab_instance_id: "):
            dispatcher.extend_lab(lab, 5)  # type: ignore[arg-type]
    with pytest.raises(InvalidTask, match=r"^ends_at: "):
        dispatcher.extend_lab(running, 5, ends_at=datetime(2026, 1, 1))  # noqa: DTZ001  # that is what is wrong
    with pytest.raises(LabUnknown, match="lab 4711 is not in the database"):
        dispatcher.extend_lab(4711, 5)
    with pytest.raises(DispatcherError, match="needs a database"):
        InMemoryDispatcher().extend_lab(running, 5)


def test_a_call_that_is_repeated_with_the_end_as_it_was_seen_adds_once(
    dispatcher: Dispatcher, running: int
) -> None:
    seen = dispatcher.lab_time(running).ends_at
    first = dispatcher.extend_lab(running, 30, ends_at=seen)
    # As it comes out of somebody's JSON.
    rounded = datetime.fromisoformat(seen.isoformat(timespec="seconds"))
    again = dispatcher.extend_lab(running, 30, ends_at=rounded)
    assert again.ends_at == first.ends_at
    with pytest.raises(EndHasMoved) as refused:
        dispatcher.extend_lab(running, 15, ends_at=seen)
    assert refused.value.time.ends_at == first.ends_at
    assert dispatcher.extend_lab(running, 15, ends_at=first.ends_at).ends_at > first.ends_at


def test_two_clicks_at_once_add_once(dispatcher: Dispatcher, running: int) -> None:
    seen = dispatcher.lab_time(running).ends_at
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(dispatcher.extend_lab, running, 30, ends_at=seen) for _ in range(8)]
    assert {call.result().ends_at for call in calls} == {seen + timedelta(minutes=30)}


def test_within_a_transaction_of_the_backends_it_counts_with_its_commit(
    engine: Engine, database: Database, running: int
) -> None:
    before = end_of(database, running)
    with Session(engine) as session:
        lab_time.extend(session, running, 30)
        session.rollback()
        assert end_of(database, running) == before
        assert lab_time.read(session, running).ends_at == before
        lab_time.extend(session, running, 30)
        session.commit()
    assert end_of(database, running) == before + timedelta(minutes=30)


def test_an_extension_that_is_not_committed_yet_keeps_the_lab(
    cleaning: Cleaning, database: Database, engine: Engine
) -> None:
    (lab,) = cleaning.add_expired()
    with engine.begin() as connection:
        lab_time.extend(connection, lab, 30)
        assert cleaning.run() == {"deletes_published": 0}
    assert cleaning.run() == {"deletes_published": 0}
    assert database.lab(lab)["stop_requested_at"] is None


def test_an_extension_behind_a_cleanup_is_told_that_the_lab_is_over(
    dispatcher: Dispatcher, database: Database, cleaning: Cleaning, engine: Engine
) -> None:
    (lab,) = cleaning.add_expired()
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as connection:
            connection.execute(text("UPDATE lab_instances SET stop_requested_at = now()"))
            late = pool.submit(dispatcher.extend_lab, lab, 30)
            eventually(database.waits, what="the extension waits for the row")
        with pytest.raises(LabIsOver, match="its stop was asked for"):
            late.result()


@pytest.mark.timeout(120)
def test_each_lab_is_either_extended_or_ended_never_both(
    dispatcher: Dispatcher, cleaning: Cleaning, labs: LabStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanup, "BATCH", 3)
    expired = cleaning.add_expired(120)
    stopped = expired[::10]
    cleanings = [cleaning, cleaning.another(), cleaning.another()]
    begin = threading.Barrier(len(cleanings) + 2)

    def clean(one: Cleaning) -> int:
        begin.wait(HANG_S)
        return int(one.run().get("expired", 0))

    def extend() -> dict[int, LabTime | NotExtended]:
        begin.wait(HANG_S)
        return {lab: extended(dispatcher, lab) for lab in reversed(expired)}

    def stop() -> None:
        begin.wait(HANG_S)
        for lab in stopped:
            labs.request_stop(lab)

    with ThreadPoolExecutor(5) as pool:
        cleaned = [pool.submit(clean, one) for one in cleanings]
        extending, stopping = pool.submit(extend), pool.submit(stop)
        stopping.result()
        ended, outcomes = sum(one.result() for one in cleaned), extending.result()
    for one in cleanings[1:]:
        one.close()
    deleted = cleaning.deleted()
    assert len(deleted) == len({*deleted}) == ended
    won = [lab for lab, outcome in outcomes.items() if isinstance(outcome, LabTime)]
    assert won
    assert ended
    assert not {*won} & {*deleted}
    assert {*won, *deleted, *stopped} == {*expired}
    assert all(isinstance(outcomes[lab], LabIsOver) for lab in deleted)


def extended(dispatcher: Dispatcher, lab: int) -> LabTime | NotExtended:
    try:
        return dispatcher.extend_lab(lab, 30)
    except NotExtended as exc:
        return exc


@pytest.fixture
def command(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database.url)


@pytest.mark.usefixtures("command")
def test_the_command_shows_and_extends(
    database: Database, running: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", "time", str(running)]) == 0
    assert "minutes_possible: 360" in capsys.readouterr().out
    before = end_of(database, running)
    again = ["lab", "extend", str(running), "30", "--json", "--ends-at", before.isoformat()]
    assert main(again) == main(again) == 0
    found: Any = json.loads(capsys.readouterr().out.partition("}")[0] + "}")
    assert datetime.fromisoformat(found["ends_at"]) - before < timedelta(minutes=30, seconds=1)
    assert end_of(database, running) == before + timedelta(minutes=30)
    assert main(["lab", "extend", str(running), "999"]) == 1
    assert "at most 330 minutes more are possible" in capsys.readouterr().err
    assert main(["lab", "time", "4711"]) == 1
    assert capsys.readouterr().err == "autolabs: lab 4711 is not in the database\n"
    with pytest.raises(SystemExit):
        main(["lab", "extend", str(running), "30", "--ends-at", "2026-01-01T00:00:00"])


def test_a_greatest_age_takes_no_time_back_that_an_extension_confirmed(
    cleaning: Cleaning, database: Database, dispatcher: Dispatcher
) -> None:
    lab = database.add_lab(status="RUNNING")
    cleaning.change(
        lab, started_at="now() - interval '121 minutes'", expires_at="now() + interval '1 minute'"
    )
    cleaning.set(max_age_minutes=30)
    dispatcher.extend_lab(lab, 10)
    assert cleaning.run() == {"deletes_published": 0}
    past = "now() - interval '1 second'"
    cleaning.change(lab, extended_to=past, expires_at=past)
    assert cleaning.run() == {"deletes_published": 1, "expired": 1}
