"""The outbox as a backend fills it: its own transaction decides."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg2
import psycopg2.errors
import pytest
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from dispatcher import DeleteLabPod, InvalidTask, outbox
from dispatcher.message.request import TaskRequest
from dispatcher.models import LabInstance, OutboxTask
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_payload


def rows(database: Database) -> list[dict[str, Any]]:
    return database.rows("SELECT * FROM task_outbox ORDER BY id")


def test_a_task_is_added_with_the_lab_that_it_is_about(engine: Engine, database: Database) -> None:
    with Session(engine) as session, session.begin():
        lab = LabInstance(lab_id=7, student_id=42)
        session.add(lab)
        session.flush()
        lab_id = lab.id
        lab.celery_task_id = outbox.add(session, make_payload(lab_instance_id=lab_id))
    (row,) = rows(database)
    assert database.lab(lab_id)["celery_task_id"] == row["task_id"]
    assert row["task_name"] == "celery_workers.create_lab_pod"
    assert row["kwargs"] == create_kwargs(lab_instance_id=lab_id, resources={}, network_isolated=True)
    assert (row["lab_instance_id"], row["failures"], row["last_error"]) == (lab_id, 0, None)
    assert row["next_attempt_at"] == row["created_at"]


def test_a_rolled_back_transaction_adds_nothing(engine: Engine, database: Database) -> None:
    with Session(engine) as session:
        outbox.add(session, make_payload())
        session.rollback()
    with engine.connect() as connection:
        outbox.add(connection, make_payload())
    assert rows(database) == []


def test_adding_flushes_nothing_and_commits_nothing(engine: Engine, database: Database) -> None:
    with Session(engine) as session:
        lab = LabInstance(lab_id=7, student_id=42)
        session.add(lab)
        outbox.add(session, make_payload())
        assert lab in session.new
        assert session.in_transaction()
        assert rows(database) == []
        session.commit()
    assert len(rows(database)) == 1


def test_a_savepoint_that_is_rolled_back_takes_its_task_along(engine: Engine, database: Database) -> None:
    with Session(engine) as session, session.begin():
        kept = outbox.add(session, make_payload())
        with session.begin_nested() as savepoint:
            outbox.add(session, make_payload())
            savepoint.rollback()
    assert [row["task_id"] for row in rows(database)] == [kept]


def test_a_scoped_session_is_a_session(engine: Engine, database: Database) -> None:
    session = scoped_session(sessionmaker(engine))
    outbox.add(session, make_payload())
    session.commit()
    session.remove()
    assert len(rows(database)) == 1


def test_an_id_and_times_are_kept(engine: Engine, database: Database) -> None:
    eta = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=5)))
    until = eta + timedelta(seconds=60)
    request = TaskRequest(DeleteLabPod(lab_instance_id=2**63 - 1), task_id="my-id", eta=eta, expires=until)
    with engine.begin() as connection:
        assert outbox.add(connection, request) == "my-id"
    (row,) = rows(database)
    assert (row["task_id"], row["eta"], row["lab_instance_id"]) == ("my-id", eta, 2**63 - 1)
    assert row["expires"] == until


def test_the_model_reads_what_add_wrote(engine: Engine) -> None:
    with Session(engine) as session:
        task_id = outbox.add(session, make_payload())
        assert session.scalars(select(OutboxTask)).one().task_id == task_id


def test_an_invalid_task_leaves_the_transaction_usable(engine: Engine, database: Database) -> None:
    with Session(engine) as session, session.begin():
        with pytest.raises(InvalidTask, match="task_id"):
            outbox.add(session, TaskRequest(make_payload(), task_id="x" * 256))
        outbox.add(session, make_payload())
    assert len(rows(database)) == 1


def test_an_id_that_waits_already_is_refused(engine: Engine) -> None:
    with Session(engine) as session:
        outbox.add(session, TaskRequest(make_payload(), task_id="twice"))
        with pytest.raises(IntegrityError, match="task_outbox_task_id_key"):
            outbox.add(session, TaskRequest(make_payload(), task_id="twice"))


def test_a_cursor_adds_within_its_own_transaction(database: Database) -> None:
    connection = psycopg2.connect(database.url)
    with connection, connection.cursor() as cursor:
        kept = outbox.add_with_cursor(cursor, TaskRequest(make_payload(), countdown=30))
    with connection.cursor() as cursor:
        outbox.add_with_cursor(cursor, make_payload())
        connection.rollback()
    connection.close()
    (row,) = rows(database)
    assert row["task_id"] == kept
    assert row["kwargs"]["docker_image"] == make_payload().docker_image
    assert row["eta"] > row["created_at"]


def test_sql_alone_adds_a_task(database: Database) -> None:
    database.rows("""INSERT INTO task_outbox (task_name, kwargs) VALUES ('any', '{"lab_instance_id": 5}')""")
    (row,) = rows(database)
    assert re.fullmatch(r"[0-9a-f-]{36}", row["task_id"])
    assert row["lab_instance_id"] == 5


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ("'t', '{\"lab_instance_id\": \"seven\"}'", 'invalid input syntax for type bigint: "seven"'),
        ("'t', '{\"lab_instance_id\": 9223372036854775808}'", "out of range for type bigint"),
        ("'t', '[1]'", "task_outbox_kwargs_check"),
        ("'t', '{\"a\": \"\\u0000\"}'", "unsupported Unicode escape sequence"),
        ("'', '{}'", "task_outbox_task_name_check"),
        ("repeat('n', 256), '{}'", "task_outbox_task_name_check"),
        ("'t', jsonb_build_object('a', repeat('x', 1048576))", "task_outbox_kwargs_size_check"),
    ],
    ids=["lab as text", "lab too large", "a list", "NUL", "no name", "long name", "a megabyte"],
)
def test_the_database_refuses_what_no_message_can_be(database: Database, values: str, complaint: str) -> None:
    with pytest.raises(psycopg2.Error, match=complaint):
        database.rows(f"INSERT INTO task_outbox (task_name, kwargs) VALUES ({values})")


@pytest.mark.parametrize("column", ["eta", "expires"])
@pytest.mark.parametrize("moment", ["infinity", "-infinity", "20000-01-01", "0044-03-15 BC"])
def test_the_database_refuses_a_time_that_python_cannot_read(
    database: Database, column: str, moment: str
) -> None:
    with pytest.raises(psycopg2.errors.CheckViolation, match=f"task_outbox_{column}_check"):
        database.rows(f"INSERT INTO task_outbox (task_name, {column}) VALUES ('t', '{moment}')")
