"""`autolabs dlq` asked to stop: the queue keeps its order, and a sentence says what became of it."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

import psycopg2
import pytest

from console.dlq import run
from console.dlq.letters import Selector
from console.dlq.queue import LOCK_QUEUE
from dispatcher.settings import ServerSettings
from tests.support.broker.dead_letters import DLQ, Dlq, bury, make_delete
from tests.support.broker.rabbitmq import Broker
from tests.support.database.postgres import Database
from tests.support.waiting import HANG_S, eventually, eventually_equal

SENTENCE = "autolabs: interrupted; what was not taken is in the dead-letter queue\n"


@pytest.fixture
def dlq(broker: Broker, database: Database) -> Dlq:
    return Dlq(broker, database)


def stop(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str, str]:
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=HANG_S)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_list_that_is_interrupted_leaves_the_queue_in_its_order(
    dlq: Dlq, broker: Broker, asked: signal.Signals
) -> None:
    ids = bury(broker, *(make_delete(lab) for lab in range(1, 1501)))
    process = dlq.start("list")
    eventually(lambda: broker.depth(DLQ) < 1300, what="it is at it")
    code, out, err = stop(process, asked)
    assert (code, out, err) == (128 + asked, "", SENTENCE)
    eventually_equal(lambda: broker.depth(DLQ), len(ids))
    assert dlq.ids() == ids


def test_a_discard_that_is_interrupted_says_what_it_took(dlq: Dlq, broker: Broker) -> None:
    ids = bury(broker, *(make_delete(lab) for lab in range(1, 401)))
    process = dlq.start("discard", "--all", "--yes")
    eventually(lambda: len(dlq.actions()) > 20, what="it is at it")
    code, out, err = stop(process, signal.SIGINT)
    assert (code, err) == (130, SENTENCE)
    taken = [row["task_id"] for row in dlq.actions()]
    assert 20 < len(taken) < len(ids)
    assert f"{len(taken)} messages discarded, 0 refused" in out
    eventually_equal(lambda: broker.depth(DLQ), len(ids) - len(taken))
    assert (taken, dlq.ids()) == (ids[: len(taken)], ids[len(taken) :])


def test_who_waits_for_another_command_can_be_stopped(dlq: Dlq, broker: Broker) -> None:
    bury(broker, make_delete(1))
    other = broker.channel()
    other.queue_declare(LOCK_QUEUE, exclusive=True)
    process = dlq.start("list")
    eventually(lambda: "autolabs-dlq" in broker.connection_names(), what="it is connected")
    assert stop(process, signal.SIGINT) == (130, "", SENTENCE)


def test_a_message_that_is_at_hand_is_finished_first(dlq: Dlq, broker: Broker) -> None:
    ids = bury(broker, make_delete(1), make_delete(2))
    blocker: Any = psycopg2.connect(dlq.database.url)
    blocker.cursor().execute("LOCK TABLE dead_letter_actions")
    process = dlq.start("discard", "--all", "--yes")
    eventually(dlq.database.waits, what="a waiting row")
    process.send_signal(signal.SIGINT)
    blocker.close()
    _, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, err) == (130, SENTENCE)
    assert [row["task_id"] for row in dlq.actions()] == ids[:1]
    assert dlq.ids() == ids[1:]


def test_a_reader_that_has_seen_enough_is_no_error(dlq: Dlq, broker: Broker) -> None:
    bury(broker, *(make_delete(lab) for lab in range(1, 1001)))  # more than a pipe holds
    reading, writing = os.pipe()
    os.close(reading)
    process = dlq.start("list", "--limit", "1000", stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, err) == (128 + signal.SIGPIPE, "")


def test_long_work_says_where_it_is(
    dlq: Dlq, broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bury(broker, make_delete(1), make_delete(2))
    monkeypatch.setattr(run, "PROGRESS_S", 0.0)
    settings = ServerSettings(broker.settings, dlq.database.url)
    with run.open_run(settings, verb="discard", actor="ann") as discard:
        assert discard.act(discard.choose(Selector()))
    said = capsys.readouterr()
    assert said.err == "... 0 of 2 messages discarded\n... 1 of 2 messages discarded\n"
    assert "2 messages discarded, 0 refused" in said.out
