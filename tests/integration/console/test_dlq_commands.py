"""`autolabs dlq …` as operators run it: what they see, what is refused, what is said the second time."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from dispatcher.broker import topology
from dispatcher.failure_contract import DeadLetterHeader
from dispatcher.message.envelope import decode, encode
from dispatcher.tasks import CREATE_LAB_POD
from tests.support.broker.dead_letters import DLQ, ROOT, Dlq, bury, make_delete, why
from tests.support.broker.rabbitmq import Broker
from tests.support.containers.in_process import Answer
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_task
from tests.support.waiting import HANG_S, eventually_equal


@pytest.fixture
def dlq(broker: Broker, database: Database) -> Dlq:
    return Dlq(broker, database)


def create_of(lab: int) -> Any:
    return make_task(name=CREATE_LAB_POD, kwargs=create_kwargs(lab_instance_id=lab))


CREATE = {"routing-key": "lab.create", "queue": topology.QUEUE_NORMAL}


def test_an_empty_queue_is_said(dlq: Dlq) -> None:
    assert dlq("list") == Answer(0, "0 messages in celery.dlq\n", "")
    assert dlq("requeue", "--all") == Answer(0, "celery.dlq is empty\n", "")


def test_the_list_shows_each_message_and_counts_the_causes(dlq: Dlq, broker: Broker) -> None:
    (first,) = bury(broker, make_delete(1))
    second, third = bury(broker, make_delete(2), make_delete(3), cause="cluster_away", category="C")
    answer = dlq("list")
    heading, *rows = answer.out.splitlines()
    assert heading.split()[:3] == ["KEY", "TASK", "ID"]
    assert [first in rows[0], second in rows[1], third in rows[2]] == [True] * 3
    assert "slow_stop" in rows[0]
    assert "The lab takes longer than usual to stop" in rows[0]
    assert [line.split() for line in rows[4:]] == [
        ["3", "messages", "in", "celery.dlq"],
        ["2", "cluster_away", "(C)"],
        ["1", "slow_stop", "(TEMPORARY_RESOURCE_ERROR)"],
    ]
    listed = json.loads(dlq("list", "--json", "--limit", "1", "--cause", "cluster_away").out)
    assert [letter["task_id"] for letter in listed["messages"]] == [second]
    assert listed["by_cause"] == [{"cause": "cluster_away", "category": "C", "count": 2}]
    assert listed["total"] == 3
    assert "and 2 more" in dlq("list", "--limit", "1").out
    assert dlq.ids() == [first, second, third]


def test_a_list_needs_no_database(dlq: Dlq, broker: Broker) -> None:
    (task_id,) = bury(broker, make_delete(1))
    for command in (("list",), ("show", task_id)):
        assert task_id in dlq(*command, environ={"DATABASE_URL": ""}).out


def test_one_message_is_shown_with_all_that_is_known(dlq: Dlq, broker: Broker) -> None:
    (task_id,) = bury(broker, make_delete(7), pod="pod-\x1b[2J")
    answer = dlq("show", task_id)
    shown = dict(line.split(maxsplit=1) for line in answer.out.splitlines())
    assert (shown["task_id:"], shown["lab_instance_id:"], shown["attempts:"]) == (task_id, "7", "4")
    assert shown["first_error:"].startswith("The cluster does not answer")
    assert shown["last_error:"].startswith("The lab takes longer")
    assert shown["pod:"] == "pod-\\x1b[2J"
    assert json.loads(shown["kwargs:"]) == {"lab_instance_id": 7}
    (found,) = json.loads(dlq("show", shown["key:"][:12], "--json").out)
    assert (found["task_id"], found["headers"]["id"]) == (task_id, task_id)
    assert dlq("show", "no-such-id").code == 1


def test_a_secret_in_the_arguments_is_not_shown(dlq: Dlq, broker: Broker) -> None:
    (task_id,) = bury(broker, make_delete(args=["amqp://u:hidden@host/"], unsupported={}))
    answer = dlq("show", task_id)
    assert "amqp://u:***@host/" in answer.out
    assert "hidden" not in answer.out


def test_a_requeued_message_is_a_first_attempt_under_its_id(dlq: Dlq, broker: Broker) -> None:
    task = make_delete(7, retries=3, first_error="x", shadow="s", stamps={"a": "b"}, priority=3)
    bury(broker, task)
    answer = dlq("requeue", task.id, "--actor", "ann")
    assert (answer.code, answer.err) == (0, "")
    assert f"task {task.id}, celery_workers.delete_lab_pod of lab 7) to lab.delete" in answer.out
    message = broker.take(topology.QUEUE_HIGH)
    again = decode(message.body, message.properties)
    assert (again.id, again.retries, again.first_error) == (task.id, 0, None)
    assert (again.kwargs, again.shadow, again.stamps, again.priority) == (
        task.kwargs,
        "s",
        {"a": "b"},
        3,
    )
    assert message.routing_key == "lab.delete"
    assert message.properties.correlation_id == task.id
    ours = ("x-autolabs-", "x-death", "x-first-death", "x-last-death", "autolabs_first_error")
    assert [name for name in message.headers if name.startswith(ours)] == []
    (row,) = dlq.actions()
    assert (row["actor"], row["action"], row["task_id"]) == ("ann", "requeued", task.id)
    assert (row["lab_instance_id"], row["error_category"], row["cause"]) == (
        7,
        "TEMPORARY_RESOURCE_ERROR",
        "slow_stop",
    )
    assert (row["body"], row["headers"]["x-autolabs-pod"]) == (None, "pod-1")


def test_what_the_broker_gave_up_is_requeued_without_its_death(dlq: Dlq, broker: Broker) -> None:
    task_id = broker.publish_task(name=make_delete().name, kwargs={"lab_instance_id": 7})
    channel = broker.channel()
    for _ in range(topology.DELIVERY_LIMIT + 1):
        method, _, _ = channel.basic_get(topology.QUEUE_HIGH)
        assert method is not None
        channel.basic_reject(method.delivery_tag, requeue=True)
    eventually_equal(lambda: broker.depth(DLQ), 1)
    listed = json.loads(dlq("list", "--json").out)["messages"]
    assert [(letter["made_by"], letter["cause"]) for letter in listed] == [("broker", "container_crashed")]
    assert "within 6 deliveries" in listed[0]["reason"]
    assert listed[0]["died_at"]
    assert dlq("requeue", task_id).code == 0
    message = broker.take(topology.QUEUE_HIGH)
    assert [name for name in message.headers if name.startswith("x-")] == []


def test_what_was_done_earlier_is_said_and_is_no_error(dlq: Dlq, broker: Broker) -> None:
    requeued, discarded = bury(broker, make_delete(7), make_delete(8))
    assert dlq("requeue", requeued, "--actor", "ann").code == 0
    assert dlq("discard", discarded, "--actor", "bob").code == 0
    again = dlq("requeue", requeued)
    assert (again.code, again.err) == (0, "")
    assert "requeued by ann" in again.out
    assert dlq("discard", "--lab", "8").code == 0
    key = dlq.actions()[1]["message_key"]
    assert "discarded by bob" in dlq("discard", key[:12]).out
    # Not what was asked for.
    other = dlq("requeue", discarded)
    assert other.code == 1
    assert "discarded by bob" in other.out
    unknown = dlq("requeue", "nobody-knows-it")
    assert (unknown.code, unknown.out) == (1, "")
    assert "nor was anything done with it earlier" in unknown.err
    assert len(dlq.actions()) == 2
    assert dlq("requeue", "--lab", "4711").code == 1


def test_of_several_ids_the_known_ones_are_acted_upon(dlq: Dlq, broker: Broker) -> None:
    first, second = bury(broker, make_delete(1), make_delete(2))
    answer = dlq("requeue", first, "nobody-knows-it", second, "--yes")
    assert answer.code == 1
    assert "nobody-knows-it" in answer.err
    assert dlq.ids(topology.QUEUE_HIGH) == [first, second]


def test_a_discarded_message_is_in_the_table(dlq: Dlq, broker: Broker) -> None:
    task = make_delete(7)
    bury(broker, task)
    assert dlq("discard", "--lab", "7").code == 0
    assert broker.is_empty(DLQ, topology.QUEUE_HIGH)
    (row,) = dlq.actions()
    body, _ = encode(task)
    assert (bytes(row["body"]), row["body_bytes"], row["action"]) == (body, len(body), "discarded")
    assert (row["headers"]["id"], row["headers"]["timelimit"]) == (task.id, [None, None])
    assert (row["content_type"], row["content_encoding"]) == ("application/json", "utf-8")
    assert "@" in row["actor"]


@pytest.mark.parametrize("state", ["missing", "FAILED", "RUNNING", "stop requested"])
def test_a_create_that_would_do_nothing_is_refused(
    dlq: Dlq, broker: Broker, database: Database, state: str
) -> None:
    lab = 4711 if state == "missing" else database.add_lab()
    if state == "stop requested":
        database.rows("UPDATE lab_instances SET stop_requested_at = now() WHERE id = %s", lab)
    elif state != "missing":
        database.rows("UPDATE lab_instances SET status = %s WHERE id = %s", state, lab)
    (task_id,) = bury(broker, create_of(lab), **CREATE)
    said = {"missing": "not in the database", "stop requested": "to be stopped"}
    for words in (("--dry-run",), ()):
        answer = dlq("requeue", task_id, *words)
        assert answer.code == 1
        assert said.get(state, f"is {state} and states only move forward") in answer.err
    assert (dlq.ids(), dlq.actions()) == ([task_id], [])
    assert dlq("requeue", task_id, "--force").code == 0
    assert dlq.ids(topology.QUEUE_NORMAL) == [task_id]


def test_a_create_of_a_pending_lab_is_requeued(dlq: Dlq, broker: Broker, lab: int) -> None:
    (task_id,) = bury(broker, create_of(lab), **CREATE)
    assert dlq("requeue", task_id, "--dry-run").out.startswith("would be requeued: ")
    assert broker.is_empty()
    assert dlq("requeue", task_id).code == 0
    assert dlq.ids(topology.QUEUE_NORMAL) == [task_id]


def test_a_cancelled_task_is_refused(dlq: Dlq, broker: Broker, database: Database) -> None:
    (task_id,) = bury(broker, make_delete(7))
    database.results.cancel(task_id)
    answer = dlq("requeue", task_id)
    assert answer.code == 1
    assert "was cancelled" in answer.err


def test_an_expired_task_needs_to_lose_its_expires(dlq: Dlq, broker: Broker) -> None:
    now = datetime.now(timezone.utc)
    (task_id,) = bury(broker, make_delete(7, expires=now - timedelta(hours=1), eta=now - timedelta(hours=2)))
    for words in ((), ("--force",)):
        answer = dlq("requeue", task_id, *words)
        assert answer.code == 1
        assert "--drop-expires publishes it without" in answer.err
    assert dlq("requeue", task_id, "--drop-expires").code == 0
    message = broker.take(topology.QUEUE_HIGH)
    assert (message.headers["expires"], message.headers["eta"], message.properties.expiration) == (None,) * 3


def test_a_task_for_later_waits_on_the_ladder(dlq: Dlq, broker: Broker) -> None:
    now = datetime.now(timezone.utc)
    (task_id,) = bury(broker, make_delete(7, eta=now + timedelta(hours=1), expires=now + timedelta(hours=2)))
    assert dlq("requeue", task_id).code == 0
    message = broker.take_delayed()
    assert 3500 < message.delay_s <= 3601
    assert (message.headers["id"], bool(message.headers["expires"])) == (task_id, True)


def test_a_task_that_no_container_performs_would_come_straight_back(dlq: Dlq, broker: Broker) -> None:
    task = make_task(name="celery_workers.nope", kwargs={})
    bury(broker, task, **{"routing-key": "lab.sync"})
    answer = dlq("requeue", task.id)
    assert answer.code == 1
    assert "would come straight back" in answer.err
    assert dlq("requeue", task.id, "--force").code == 0
    assert dlq.ids(topology.QUEUE_LOW) == [task.id]


def test_a_routing_key_of_no_queue_gives_way_to_the_task_s(dlq: Dlq, broker: Broker) -> None:
    (task_id,) = bury(broker, make_delete(7), **{"routing-key": "celery.dlq"})
    assert dlq("requeue", task_id).code == 0
    assert dlq.ids(topology.QUEUE_HIGH) == [task_id]


def test_more_than_one_message_needs_a_yes(dlq: Dlq, broker: Broker) -> None:
    ids = bury(broker, make_delete(1), make_delete(2))
    answer = dlq("requeue", "--all")
    assert answer.code == 1
    assert "this would requeue 2 messages: repeat it with --yes" in answer.err
    assert dlq("requeue", "--all", "--dry-run").out.count("would be requeued") == 2
    assert dlq.ids() == ids
    for wrong in ((), ("--all", "--lab", "1")):
        assert dlq("requeue", *wrong).code == 2


@contextmanager
def terminal(typed: bytes) -> Iterator[int]:
    """A terminal at which somebody has typed this already."""
    ours, theirs = pty.openpty()
    os.write(ours, typed)
    yield theirs
    os.close(ours)
    os.close(theirs)


ASKED = "discard 2 messages? [y/N]"


@pytest.mark.parametrize(("typed", "left"), [(b"y\n", 0), (b"n\n", 2), (b"\n", 2), (b"\x04", 2)])
def test_on_a_terminal_it_asks(dlq: Dlq, broker: Broker, typed: bytes, left: int) -> None:
    bury(broker, make_delete(1), make_delete(2))
    with terminal(typed) as number, os.fdopen(number, closefd=False) as stdin:
        answer = dlq("discard", "--all", stdin=stdin)
    assert ASKED in answer.out
    assert (answer.code, broker.depth(DLQ)) == (0 if left == 0 else 1, left)


def without_age(answer: Answer) -> Answer:
    return replace(answer, out=re.sub(r"\d+s ", "", answer.out))


def test_a_process_of_its_own_says_and_asks_the_same(dlq: Dlq, broker: Broker) -> None:
    bury(broker, make_delete(1), make_delete(2))
    assert without_age(dlq.process("list")) == without_age(dlq("list"))
    with terminal(b"y\n") as stdin:
        process = dlq.start("discard", "--all", stdin=stdin)
        out, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, err) == (0, "")
    assert ASKED in out
    assert broker.depth(DLQ) == 0


def test_an_operator_needs_few_rights(dlq: Dlq, broker: Broker) -> None:
    ids = bury(broker, make_delete(1), make_delete(2, eta=datetime.now(timezone.utc) + timedelta(hours=1)))
    url = broker.url_of_user(
        configure=r"^autolabs\.dlq\.lock$",
        write=r"^(autolabs\.tasks|celery_delayed_27)$",
        read=r"^celery\.dlq$",
    )
    assert dlq("list", environ={"AMQP_URL": url}).code == 0
    assert dlq("requeue", *ids, "--yes", environ={"AMQP_URL": url}).code == 0
    without = dlq(
        "list", environ={"AMQP_URL": broker.url_of_user(configure="^$", write="^$", read="^celery")}
    )
    assert without.code == 1
    assert "must have configure on autolabs.dlq.lock and read on celery.dlq" in without.err


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("AMQP_URL", "amqp://user:hidden@127.0.0.1:1/"),
        ("DATABASE_URL", "postgresql://u:hidden@127.0.0.1:1/d"),
        ("AMQP_URL", ""),
    ],
)
def test_servers_that_are_away_are_a_sentence(dlq: Dlq, broker: Broker, variable: str, url: str) -> None:
    ids = bury(broker, make_delete(1))
    answer = dlq("requeue", *ids, environ={variable: url})
    assert (answer.code, answer.out.count("requeued: ")) == (1 if url else 2, 0)
    # Nothing was looked at, so nothing has to be said of what was taken.
    assert "What was not taken" not in answer.err
    assert answer.err.startswith("autolabs: ")
    assert "hidden" not in answer.err
    assert "Traceback" not in answer.err
    assert dlq.ids() == ids


def test_a_message_that_is_not_there_is_said_without_a_database(dlq: Dlq) -> None:
    for url in ("", "postgresql://u:hidden@127.0.0.1:1/d"):
        answer = dlq("show", "no-such-id", environ={"DATABASE_URL": url})
        assert (answer.code, answer.out) == (1, "")
        assert answer.err.startswith("autolabs: nothing in celery.dlq is no-such-id; what was done with it")
        assert "hidden" not in answer.err


def test_a_limit_below_nothing_is_refused(dlq: Dlq) -> None:
    answer = dlq("list", "--limit", "-3")
    assert answer.code == 2
    assert "must be an integer from 0" in answer.err


def test_a_missing_queue_is_a_sentence(bare_broker: Broker, database: Database) -> None:
    answer = Dlq(bare_broker, database)("list")
    assert answer.code == 1
    assert "`autolabs topology declare` makes it" in answer.err


def test_the_commands_of_the_reference_do_what_it_says(dlq: Dlq, broker: Broker) -> None:
    page = (ROOT / "docs" / "reference" / "dead-letters.md").read_text()
    (block,) = re.findall(r"```console\n(.*?)```", page, flags=re.DOTALL)
    (one,) = bury(broker, make_delete(1))
    others = bury(broker, make_delete(2), make_delete(3), cause="cluster_away")
    key = json.loads(dlq("list", "--json").out)["messages"][0]["key"]
    commands = [
        shlex.split(line, comments=True) for line in block.replace("3f8e5ab27c10", key[:12]).splitlines()
    ]
    assert [command[:2] for command in commands] == [["autolabs", "dlq"]] * 5
    answers = [dlq(*command[2:]) for command in commands]
    assert [(answer.code, answer.err) for answer in answers] == [(0, "")] * 5
    assert one in answers[1].out
    assert dlq.ids(topology.QUEUE_HIGH) == others
    assert [row["action"] for row in dlq.actions()] == ["requeued", "requeued", "discarded"]


def test_the_headers_of_a_dead_letter_are_what_settle_writes() -> None:
    # tests.support.broker.dead_letters.why is only as good as this.
    source = (ROOT / "jobs" / "container" / "settle.py").read_text()
    headers = {value: name for name, value in vars(DeadLetterHeader).items() if name.isupper()}
    assert [name for name in why(make_delete()) if f"DeadLetterHeader.{headers[name]}:" not in source] == []
