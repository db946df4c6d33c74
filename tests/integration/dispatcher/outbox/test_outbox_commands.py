"""`autolabs outbox …` and the sweep, as operators run them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine

import jobs.database.connection
from cronjobs.__main__ import main as cron
from dispatcher.__main__ import main as autolabs
from dispatcher.broker import topology
from tests.support.broker.outbox import Arrivals, commit, creates
from tests.support.broker.rabbitmq import Broker
from tests.support.database.postgres import Database
from tests.support.waiting import HANG_S, eventually

ROOT = Path(__file__).parents[4]
NOWHERE = "amqp://user:hidden@127.0.0.1:1/"


@pytest.fixture(autouse=True)
def environment(broker: Broker, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMQP_URL", broker.url)
    monkeypatch.setenv("AMQP_PUBLISH_TIMEOUT_S", "1")
    monkeypatch.setattr(jobs.database.connection, "BLIP_S", 0.2)
    monkeypatch.setenv("DATABASE_URL", database.url)


def test_relay_once_publishes_what_is_due(
    engine: Engine, arrivals: Arrivals, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = commit(engine, *creates([1, 2], each=2))
    assert autolabs(["outbox", "relay", "--once"]) == 0
    assert capsys.readouterr().out == "published: 4\n"
    assert sorted(arrivals.ids()) == sorted(ids)
    assert autolabs(["outbox", "relay", "--once"]) == 0
    assert capsys.readouterr().out == "published: 0\n"


def test_relay_once_says_which_task_failed_and_why(
    engine: Engine, broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.channel().queue_delete(topology.QUEUE_NORMAL)
    (task_id,) = commit(engine, *creates([1]))
    assert autolabs(["outbox", "relay", "--once"]) == 1
    error = capsys.readouterr().err
    assert f"autolabs: task {task_id} was not published: " in error
    assert "no queue is bound" in error


@pytest.mark.parametrize("variable", ["AMQP_URL", "DATABASE_URL"])
def test_relay_once_fails_without_its_servers(
    engine: Engine, variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(engine, *creates([1]))
    monkeypatch.setenv(variable, NOWHERE if variable == "AMQP_URL" else "postgresql://u:hidden@127.0.0.1:1/d")
    assert autolabs(["outbox", "relay", "--once"]) == 1
    error = capsys.readouterr().err
    assert "efused" in error
    assert "hidden" not in error
    assert "Traceback" not in error


def test_the_list_shows_what_waits_and_why(
    engine: Engine, broker: Broker, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    assert autolabs(["outbox", "list"]) == 0
    assert capsys.readouterr().out == "the outbox is empty\n"
    broker.channel().queue_delete(topology.QUEUE_NORMAL)
    (task_id,) = commit(engine, *creates([7]))
    database.rows("INSERT INTO task_outbox (task_name) VALUES (E'odd\\n\\x1b[2Jname')")
    autolabs(["outbox", "relay", "--once"])
    capsys.readouterr()
    assert autolabs(["outbox", "list"]) == 0
    heading, first, second = capsys.readouterr().out.splitlines()
    assert heading.split() == ["ID", "TASK", "ID", "TASK", "LAB", "AGE", "FAILURES", "LAST", "ERROR"]
    assert task_id in first
    assert "no queue is bound" in first
    assert "\\x1b" in second
    assert autolabs(["outbox", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(row["lab_instance_id"], row["failures"]) for row in listed] == [(7, 1), (None, 1)]
    assert listed[0]["age_s"] >= 0
    assert autolabs(["outbox", "list", "--limit", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_task_that_can_never_be_published_is_discarded(
    engine: Engine, database: Database, arrivals: Arrivals, capsys: pytest.CaptureFixture[str]
) -> None:
    # Python reads no integer of 5000 digits, so this one blocks its lab and fails the sweep for ever.
    (row,) = database.rows(
        "INSERT INTO task_outbox (task_name, kwargs) VALUES (E'odd\x1b[2J',"
        """ ('{"lab_instance_id": 7, "a": 1' || repeat('0', 5000) || '}')::jsonb) RETURNING id, task_id"""
    )
    (blocked,) = commit(engine, *creates([7]))
    assert cron(["outbox"]) == 69
    capsys.readouterr()
    assert autolabs(["outbox", "list"]) == 0
    listed = capsys.readouterr().out.splitlines()[1].split()
    assert listed[:2] == [str(row["id"]), row["task_id"]]
    assert autolabs(["outbox", "discard", listed[0]]) == 0
    shown = capsys.readouterr().out
    assert all(line.isprintable() for line in shown.splitlines())
    fields = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert (fields["discarded:"], fields["task_id:"]) == (str(row["id"]), row["task_id"])
    assert fields["kwargs:"] == '{"a": 1' + 5000 * "0" + ', "lab_instance_id": 7}'
    assert "digits" in fields["last_error:"]
    assert cron(["outbox"]) == 0
    assert arrivals.ids() == [blocked]
    assert autolabs(["outbox", "discard", listed[0]]) == 1
    assert capsys.readouterr().err == f"autolabs: no task {listed[0]} waits in the outbox\n"


def test_a_number_that_no_task_has_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert autolabs(["outbox", "discard", "9223372036854775807"]) == 1
    assert "no task 9223372036854775807" in capsys.readouterr().err


@pytest.mark.parametrize("row_id", ["0", "-1", "99999999999999999999"])
def test_a_number_that_no_task_can_have_is_refused(row_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        autolabs(["outbox", "discard", row_id])
    assert raised.value.code == 2
    assert "must be an integer from 1" in capsys.readouterr().err


def test_the_relay_runs_until_it_is_told_to_stop(
    engine: Engine, database: Database, arrivals: Arrivals, tmp_path: Path
) -> None:
    log = tmp_path / "relay.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "dispatcher", "outbox", "relay"]
        relay = subprocess.Popen(command, cwd=ROOT, env=os.environ, stderr=output)
    try:
        eventually(lambda: "listening" in log.read_text(), what="a relay that listens")
        ids = commit(engine, *creates([1]))
        eventually(lambda: not database.rows("SELECT 1 FROM task_outbox"), what="an empty outbox")
        relay.send_signal(signal.SIGTERM)
        assert relay.wait(HANG_S) == 0
    finally:
        if relay.poll() is None:
            relay.kill()
        relay.wait(HANG_S)
    assert arrivals.ids() == ids
    assert "published 1" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_the_sweep_publishes_what_is_due(engine: Engine, arrivals: Arrivals) -> None:
    ids = commit(engine, *creates([1, 2]))
    assert cron(["outbox", "--dry-run"]) == 0
    assert arrivals.ids() == []
    assert cron(["outbox"]) == 0
    assert sorted(arrivals.ids()) == sorted(ids)


@pytest.mark.parametrize("variable", ["AMQP_URL", "DATABASE_URL"])
@pytest.mark.parametrize(("url", "code"), [("away", 69), ("", 78)], ids=["away", "not set"])
def test_the_sweep_says_by_its_exit_code_what_is_wrong(
    engine: Engine, variable: str, url: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(engine, *creates([1]))
    away = {"AMQP_URL": NOWHERE, "DATABASE_URL": "postgresql://u:hidden@127.0.0.1:1/d"}
    monkeypatch.setenv(variable, url and away[variable])
    assert cron(["outbox"]) == code


def test_the_sweep_fails_when_a_task_was_not_published(engine: Engine, broker: Broker) -> None:
    broker.channel().queue_delete(topology.QUEUE_NORMAL)
    commit(engine, *creates([1]))
    assert cron(["outbox"]) == 69
