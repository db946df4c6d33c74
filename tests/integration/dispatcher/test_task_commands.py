from __future__ import annotations

import json

import pytest

from dispatcher.__main__ import main
from jobs.database.lab_store import LabStore
from jobs.database.ledger import Ending
from jobs.errors import PermanentError
from jobs.failures import Failure
from tests.support.database.postgres import Database
from tests.support.factories import make_record


@pytest.fixture(autouse=True)
def _environ(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database.url)


def test_a_status_is_shown_for_people_and_for_programs(
    labs: LabStore, capsys: pytest.CaptureFixture[str]
) -> None:
    record = make_record(7, task_id="t")
    labs.begin(record)
    error = PermanentError(Failure.IMAGE_NOT_LOADABLE, "The image is\x1b[31m wrong.")
    labs.record(record, Ending.of_error("failed", error))
    assert main(["task", "status", "t"]) == 0
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert (lines["state"].strip(), lines["lab_instance_id"].strip()) == ("FAILURE", "7")
    assert "\x1b" not in lines["error_message"]
    assert main(["task", "status", "t", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["error_message"]) == ("FAILURE", "The image is\x1b[31m wrong.")


def test_a_cancel_says_whether_it_came_in_time(labs: LabStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task", "cancel", "in-time"]) == 0
    said = capsys.readouterr().out
    assert "REVOKED" in said
    assert "no container has run this task, and none will begin it" in said
    labs.begin(make_record(7, task_id="begun"))
    labs.record(make_record(7, task_id="over"), Ending("succeeded"))
    assert main(["task", "cancel", "begun"]) == 1
    assert "a container works on it; a create stops" in capsys.readouterr().out
    assert main(["task", "cancel", "over"]) == 1
    assert "the task had ended already" in capsys.readouterr().out


def test_a_database_that_is_away_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hidden@127.0.0.1:1/db")
    assert main(["task", "status", "t"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("autolabs: the task could not be looked up")
    assert "hidden" not in said
