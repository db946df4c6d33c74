"""Requests for labs in the backend's transaction, at the same moment and through both of its interfaces."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from dispatcher import DispatcherError, InvalidTask, TooManyLabs, labs
from dispatcher.labs import RequestedLab
from tests.support.database.postgres import Database
from tests.support.factories import IMAGE

Ask = Callable[..., RequestedLab]
WANTED: dict[str, Any] = {"lab_id": 7, "student_id": 42, "docker_image": IMAGE}


@pytest.fixture(params=["session", "cursor"])
def ask(request: pytest.FixtureRequest, engine: Engine) -> Ask:
    """Ask for a lab and commit."""

    def by_session(**changes: Any) -> RequestedLab:
        with Session(engine) as session, session.begin():
            return labs.request(session, **{**WANTED, **changes})

    def by_cursor(**changes: Any) -> RequestedLab:
        connection = engine.raw_connection()
        try:
            lab = labs.request_with_cursor(connection.cursor(), **{**WANTED, **changes})
            connection.commit()
        finally:
            connection.close()
        return lab

    return by_session if request.param == "session" else by_cursor


def tasks(database: Database) -> list[dict[str, Any]]:
    return database.rows("SELECT task_id, task_name, kwargs FROM task_outbox ORDER BY id")


def test_row_and_task_are_committed_together(ask: Ask, database: Database) -> None:
    lab = ask(resources={"cpu": "500m"})
    row = database.lab(lab.lab_instance_id)
    assert lab == RequestedLab(row["id"], "PENDING", row["celery_task_id"], created=True)
    assert (row["lab_id"], row["student_id"], row["status"]) == (7, 42, "PENDING")
    (task,) = tasks(database)
    assert task["task_id"] == lab.task_id
    assert task["kwargs"]["lab_instance_id"] == row["id"]
    assert task["kwargs"]["resources"] == {"cpu": "500m"}


def test_a_double_click_gives_the_lab_that_lives(ask: Ask, database: Database) -> None:
    first = ask()
    again = ask()
    assert (again.lab_instance_id, again.task_id, again.created) == (
        first.lab_instance_id,
        first.task_id,
        False,
    )
    database.rows("UPDATE lab_instances SET status = 'RUNNING'")
    assert ask().status == "RUNNING"
    assert len(tasks(database)) == 1


@pytest.mark.parametrize(
    "over",
    [
        "status = 'STOPPED'",
        "status = 'FAILED'",
        "stop_requested_at = now()",
        "status = 'RUNNING', expires_at = now() - interval '1 minute'",
    ],
)
def test_a_lab_that_is_over_is_not_given_again(ask: Ask, database: Database, over: str) -> None:
    first = ask(max_live=1)
    database.rows(f"UPDATE lab_instances SET {over}")
    second = ask(max_live=1)
    assert second.created
    assert second.lab_instance_id != first.lab_instance_id


def test_requests_at_the_same_moment_make_one_lab(ask: Ask, database: Database) -> None:
    with ThreadPoolExecutor(10) as clicks:
        answers = list(clicks.map(lambda _: ask(), range(20)))
    assert sum(lab.created for lab in answers) == 1
    assert len({lab.lab_instance_id for lab in answers}) == 1
    assert len(tasks(database)) == 1


def test_no_more_than_the_allowed_labs_are_made_at_the_same_moment(ask: Ask, database: Database) -> None:
    def try_one(lab_id: int) -> bool:
        try:
            return ask(lab_id=lab_id, max_live=3).created
        except TooManyLabs:
            return False

    with ThreadPoolExecutor(10) as clicks:
        assert sum(clicks.map(try_one, range(1, 11))) == 3
    assert len(tasks(database)) == 3


def test_a_refusal_names_the_live_labs_and_leaves_nothing(ask: Ask, database: Database) -> None:
    live = [ask(lab_id=lab_id, max_live=2).lab_instance_id for lab_id in (1, 2)]
    with pytest.raises(TooManyLabs, match="stop one first") as raised:
        ask(lab_id=3, max_live=2)
    assert (raised.value.lab_instance_ids, raised.value.max_live) == (live, 2)
    assert len(tasks(database)) == 2
    assert ask(lab_id=3, student_id=43, max_live=2).created


def test_students_do_not_wait_for_each_other(engine: Engine) -> None:
    with Session(engine) as one, one.begin(), Session(engine) as other, other.begin():
        labs.request(one, **WANTED)
        other.execute(text("SET LOCAL statement_timeout = '5s'"))
        assert labs.request(other, **{**WANTED, "student_id": 43}).created


def test_a_rollback_leaves_nothing(engine: Engine, database: Database) -> None:
    with Session(engine) as session:
        labs.request(session, **WANTED)
        session.rollback()
    assert not database.rows("SELECT id FROM lab_instances")
    assert not tasks(database)


@pytest.mark.parametrize(
    "changes",
    [
        {"docker_image": "No Image"},
        {"resources": {"cpu": "much"}},
        {"resources": "all"},
        {"student_id": 0},
        {"lab_id": True},
        {"max_live": 0},
        {"max_live": None},
    ],
    ids=str,
)
def test_what_is_not_acceptable_is_refused_by_name(
    ask: Ask, database: Database, changes: dict[str, Any]
) -> None:
    (name,) = changes
    with pytest.raises(InvalidTask) as raised:
        ask(**changes)
    assert raised.value.field.partition(".")[0] == name
    assert not database.rows("SELECT id FROM lab_instances")


def test_an_isolation_that_would_make_two_labs_is_refused(engine: Engine) -> None:
    strict = engine.execution_options(isolation_level="REPEATABLE READ")
    with Session(strict) as session, pytest.raises(DispatcherError, match="READ COMMITTED"):
        labs.request(session, **WANTED)
    serial = engine.execution_options(isolation_level="SERIALIZABLE")
    with Session(serial) as session, session.begin():
        assert labs.request(session, **WANTED).created
