from __future__ import annotations

import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from dispatcher.__main__ import main
from dispatcher.database import VERSION_TABLE, upgrade
from dispatcher.models import Base
from tests.support.postgres import Database


def test_upgrading_twice_changes_nothing(bare_database: Database) -> None:
    assert upgrade(bare_database.url) == upgrade(bare_database.url)


def test_two_upgrades_at_once_both_succeed(bare_database: Database) -> None:
    reached: list[str] = []
    threads = [threading.Thread(target=lambda: reached.append(upgrade(bare_database.url))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(reached) == 2
    assert reached[0] == reached[1] != "none"


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
