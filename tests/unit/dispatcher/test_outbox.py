"""What adding to the outbox and its commands do before any server is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from cronjobs.__main__ import main as cron
from dispatcher import InvalidTask, outbox
from dispatcher.__main__ import main as autolabs
from dispatcher.cli.outbox import _table
from dispatcher.message.request import TaskRequest
from dispatcher.outbox.relay import RelayReport, WaitingTask
from tests.support.factories import create_kwargs, make_payload

ROOT = Path(__file__).parents[3]


class RecordingCursor:
    """A DB-API cursor that notes what it is asked."""

    def __init__(self) -> None:
        self.executed: list[tuple[str, Any]] = []

    def execute(self, query: str, params: Any = None, /) -> None:
        self.executed.append((query, params))


INVALID: dict[str, Any] = {
    "no payload": create_kwargs(),
    "a long id": TaskRequest(make_payload(), task_id="x" * 256),
    "an empty id": TaskRequest(make_payload(), task_id=""),
    "a naive eta": TaskRequest(make_payload(), eta=datetime(2030, 1, 1)),  # noqa: DTZ001
    "two times": TaskRequest(make_payload(), countdown=1, eta=datetime(2030, 1, 1, tzinfo=timezone.utc)),
    "an expiry in a century": TaskRequest(make_payload(), expires=100 * 365 * 86400),
}


@pytest.mark.parametrize("task", INVALID.values(), ids=INVALID)
def test_an_invalid_task_is_refused_before_the_database_is_asked(task: Any) -> None:
    cursor = RecordingCursor()
    with pytest.raises(InvalidTask):
        outbox.add_with_cursor(cursor, task)
    assert cursor.executed == []
    nowhere = create_engine("postgresql+psycopg2://user@127.0.0.1:1/db")
    session: Any = nowhere  # no Session: nothing of it may be touched
    with pytest.raises(InvalidTask):
        outbox.add(session, task)


def test_a_cursor_gets_one_statement_with_parameters() -> None:
    cursor = RecordingCursor()
    payload = make_payload(lab_instance_id=5)
    assert outbox.add_with_cursor(cursor, TaskRequest(payload, task_id="mine")) == "mine"
    ((statement, values),) = cursor.executed
    assert statement.count("%s") == len(values) == 5
    task_id, name, kwargs, eta, expires = values
    assert (task_id, name, eta, expires) == ("mine", payload.task_name, None, None)
    assert json.loads(kwargs)["lab_instance_id"] == 5


def test_adding_by_a_cursor_needs_no_sqlalchemy() -> None:
    code = "import sys; from dispatcher import outbox; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_report_is_complete_when_nothing_failed() -> None:
    assert RelayReport(published=("a",)).complete
    assert not RelayReport(failed={"a": "why"}).complete
    assert not RelayReport(database_error="away").complete


def test_the_table_shows_no_control_characters() -> None:
    task = WaitingTask(
        id=1,
        task_id="id\x1b[2J",
        task_name="a\nb",
        lab_instance_id=None,
        failures=3,
        last_error="no\rway",
        age_s=61.4,
        due=True,
    )
    table = _table([task])
    assert len(table.splitlines()) == 2
    assert all(line.isprintable() for line in table.splitlines())
    assert "61s" in table


@pytest.mark.parametrize("command", [["relay"], ["list"], ["discard"]])
def test_help_explains_the_command(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        autolabs(["outbox", *command, "--help"])
    text = capsys.readouterr().out
    assert "DATABASE_URL" in text
    assert len(text.splitlines()) > 8


def test_the_groups_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        autolabs(["--help"])
    assert {"db", "topology", "outbox"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "arguments",
    [[], ["outbox"], ["outbox", "nope"], ["outbox", "list", "--limit", "x"], ["outbox", "discard", "x"]],
)
def test_a_wrong_command_line_exits_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        autolabs(arguments)


def test_missing_settings_are_all_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AMQP_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    assert autolabs(["outbox", "relay"]) == 2
    error = capsys.readouterr().err
    assert "AMQP_URL" in error
    assert "DATABASE_URL" in error
    assert cron(["outbox"]) == 78
