from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from dispatcher.__main__ import main
from dispatcher.errors import DispatcherError
from dispatcher.migrations import migrate as migration
from dispatcher.migrations.migrate import VERSION_TABLE, upgrade
from dispatcher.models import Base
from tests.support.database.postgres import Database
from tests.support.waiting import HANG_S, eventually


def test_upgrading_twice_changes_nothing(bare_database: Database) -> None:
    assert upgrade(bare_database.url) == upgrade(bare_database.url)


def test_two_upgrades_at_once_both_succeed(bare_database: Database) -> None:
    reached: list[str] = []
    threads = [threading.Thread(target=lambda: reached.append(upgrade(bare_database.url))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert len(reached) == 2
    assert reached[0] == reached[1] != "none"


def at_0001_with_runs(database: Database) -> None:
    """Make the tables of before, with runs in the ledger."""
    engine = create_engine(database.url.replace("://", "+psycopg2://", 1))
    with engine.begin() as connection:
        assert migration._apply_one(connection) == "0001"
    engine.dispose()
    for outcome in ("succeeded", "retried", "failed"):
        add_run(database, outcome)


def add_run(database: Database, outcome: str) -> None:
    """Write a run as containers of before 0002 do, with their patience."""
    database.rows(
        "SET statement_timeout = '10s'; INSERT INTO task_ledger"
        " (task_id, task_name, attempt, redelivered, queue, claimed_at, finished_at, outcome)"
        " VALUES ('t', 'n', 1, false, 'q', now(), now(), %s)",
        outcome,
    )


@contextmanager
def reader(database: Database) -> Iterator[None]:
    """Somebody who looks at the ledger and forgets to commit."""
    opened = psycopg2.connect(database.url)
    opened.cursor().execute("SELECT count(*) FROM task_ledger")
    yield
    opened.close()


def test_an_upgrade_beside_a_platform_at_work_keeps_nobody_waiting_for_long(bare_database: Database) -> None:
    at_0001_with_runs(bare_database)
    file = bare_database.rows("SELECT pg_relation_filenode('task_ledger') AS file")
    reached: list[str] = []
    upgrading = threading.Thread(target=lambda: reached.append(upgrade(bare_database.url)))
    with reader(bare_database):
        upgrading.start()
        of_the_ledger = "relation = 'task_ledger'::regclass"
        eventually(lambda: bare_database.waits(of_the_ledger), what="the upgrade waits for the reader")
        add_run(bare_database, "noop")
        assert reached == []
    upgrading.join(HANG_S)
    assert reached == ["0005"]
    add_run(bare_database, "succeeded")
    has_id = [row["run_id"] is not None for row in bare_database.ledger()]
    assert has_id == [False, False, False, False, True]
    # Another file would mean that the table was written anew, under a lock that keeps out its readers too.
    assert bare_database.rows("SELECT pg_relation_filenode('task_ledger') AS file") == file
    checks = "SELECT convalidated FROM pg_constraint WHERE conrelid = 'task_ledger'::regclass"
    assert all(row["convalidated"] for row in bare_database.rows(checks))


def test_an_upgrade_that_never_gets_the_ledger_says_so_and_leaves_it_in_use(
    bare_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_0001_with_runs(bare_database)
    monkeypatch.setattr(migration, "LOCK_TIMEOUT_S", 1)
    monkeypatch.setattr(migration, "LOCK_ATTEMPTS", 2)
    with reader(bare_database):
        with pytest.raises(DispatcherError, match="2 times a transaction of somebody else held a table"):
            upgrade(bare_database.url)
        add_run(bare_database, "noop")
    assert bare_database.rows(f"SELECT version_num FROM {VERSION_TABLE}") == [{"version_num": "0001"}]
    assert upgrade(bare_database.url) == "0005"


def test_a_database_of_a_later_version_is_left_alone(bare_database: Database) -> None:
    upgrade(bare_database.url)
    bare_database.rows(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(DispatcherError, match="9999"):
        upgrade(bare_database.url)


def test_the_migrations_make_what_the_models_say(database: Database) -> None:
    engine = create_engine(database.url.replace("://", "+psycopg2://", 1))
    with engine.connect() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True, "compare_server_default": True}
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)
    engine.dispose()
    assert differences == []


def test_the_backends_own_migrations_are_left_alone(bare_database: Database) -> None:
    bare_database.rows("CREATE TABLE alembic_version (version_num text)")
    bare_database.rows("INSERT INTO alembic_version VALUES ('backend-17')")
    upgrade(bare_database.url)
    assert bare_database.rows("SELECT * FROM alembic_version") == [{"version_num": "backend-17"}]


def test_the_command_says_the_revision(
    bare_database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", bare_database.url)
    assert main(["db", "upgrade"]) == 0
    assert "database is at revision 0" in capsys.readouterr().out


def test_a_database_that_does_not_answer_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:hidden@127.0.0.1:1/db")
    assert main(["db", "upgrade"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("autolabs: ")
    assert "hidden" not in error
    assert "Traceback" not in error


def test_a_backend_may_insert_two_columns_alone(database: Database) -> None:
    lab = database.lab(database.add_lab())
    assert lab["status"] == "PENDING"
    assert lab["created_at"] == lab["updated_at"]
    assert (lab["expires_at"] - lab["created_at"]).total_seconds() == 7200


def test_a_status_that_does_not_exist_is_refused(database: Database) -> None:
    with pytest.raises(Exception, match="lab_instances_status_check"):
        database.add_lab(status="PAUSED")
