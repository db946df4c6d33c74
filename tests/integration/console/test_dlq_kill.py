"""`autolabs dlq` killed with SIGKILL, cut off, or run twice at once: nothing is lost, nothing done twice."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pika
import psycopg2
import pytest

from console.dlq.queue import MAX_IN_FLIGHT, MAX_RETURNS
from dispatcher.broker import topology
from tests.integration.dlq_victim import STEPS
from tests.support.broker.dead_letters import DLQ, Dlq, bury, make_delete
from tests.support.broker.rabbitmq import Broker
from tests.support.database.postgres import Database
from tests.support.waiting import HANG_S, eventually, eventually_equal


@pytest.fixture
def dlq(broker: Broker, database: Database) -> Dlq:
    return Dlq(broker, database)


#: Of the second of three messages: is it published, is there a row, is it still in celery.dlq.
REQUEUE = {
    "before insert": (False, False, True),
    "after insert": (False, False, True),
    "before publish": (False, False, True),
    "after publish": (True, False, True),
    "before commit": (True, False, True),
    "after commit": (True, True, True),
    "before ack": (True, True, True),
    "after ack": (True, True, False),
}
DISCARD = [step for step in STEPS if "publish" not in step]


@pytest.mark.parametrize("step", STEPS)
def test_a_requeue_killed_at_any_step_loses_nothing(
    dlq: Dlq, broker: Broker, tmp_path: Path, step: str
) -> None:
    published, recorded, kept = REQUEUE[step]
    ids = bury(broker, make_delete(1), make_delete(2), make_delete(3))
    dlq.killed(step, "requeue", "--all", "--yes", log=tmp_path / "dlq.log")
    left = ids[1:] if kept else ids[2:]
    eventually_equal(lambda: broker.depth(DLQ), len(left))
    assert dlq.ids() == left
    assert dlq.ids(topology.QUEUE_HIGH) == ids[: 2 if published else 1]
    assert [row["task_id"] for row in dlq.actions()] == ids[: 2 if recorded else 1]
    again = dlq("requeue", "--all", "--yes")
    assert again.code == 0, again
    assert broker.is_empty(DLQ)
    # A duplicate where the kill came between publish and acknowledgement, and only there.
    arrived = dlq.ids(topology.QUEUE_HIGH)
    assert sorted(set(arrived)) == sorted(ids)
    assert arrived.count(ids[1]) == (2 if published and kept else 1)
    assert {row["task_id"] for row in dlq.actions()} == set(ids)


@pytest.mark.parametrize("step", DISCARD)
def test_a_discard_killed_at_any_step_keeps_the_message_in_the_queue_or_the_table(
    dlq: Dlq, broker: Broker, tmp_path: Path, step: str
) -> None:
    _, recorded, kept = REQUEUE[step]
    ids = bury(broker, make_delete(1), make_delete(2), make_delete(3))
    dlq.killed(step, "discard", "--all", "--yes", log=tmp_path / "dlq.log")
    left = ids[1:] if kept else ids[2:]
    eventually_equal(lambda: broker.depth(DLQ), len(left))
    assert [row["task_id"] for row in dlq.actions()] == ids[: 2 if recorded else 1]
    assert dlq("discard", "--all", "--yes").code == 0
    assert broker.is_empty(DLQ, topology.QUEUE_HIGH)
    assert {row["task_id"] for row in dlq.actions()} == set(ids)
    assert all(row["body"] for row in dlq.actions())


@pytest.mark.parametrize("verb", ["requeue", "discard"])
def test_of_two_operators_at_once_each_message_is_one_s(dlq: Dlq, broker: Broker, verb: str) -> None:
    ids = bury(broker, *(make_delete(lab) for lab in range(1, 41)))
    operators = [dlq.start(verb, "--all", "--yes", "--actor", name) for name in ("ann", "bob", "cid")]
    said = [operator.communicate(timeout=HANG_S) for operator in operators]
    # Whoever came too late found nothing to do, or what the others had done.
    assert [operator.returncode for operator in operators] == [0, 0, 0], said
    assert broker.is_empty(DLQ)
    assert sorted(row["task_id"] for row in dlq.actions()) == sorted(ids)
    assert sorted(dlq.ids(topology.QUEUE_HIGH)) == (sorted(ids) if verb == "requeue" else [])


def test_who_looks_while_another_does_waits_and_sees_everything(dlq: Dlq, broker: Broker) -> None:
    bury(broker, *(make_delete(lab) for lab in range(1, 301)))
    lists = [dlq.start("list", "--json") for _ in range(4)]
    totals = [json.loads(process.communicate(timeout=HANG_S)[0])["total"] for process in lists]
    assert totals == [300] * 4


def test_what_came_after_the_question_is_not_acted_upon(dlq: Dlq, broker: Broker) -> None:
    first = bury(broker, make_delete(1), make_delete(1))
    requeued = dlq("requeue", "--lab", "1", "--yes")
    assert requeued.code == 0
    second = bury(broker, make_delete(1))
    assert dlq.ids() == second
    assert sorted(dlq.ids(topology.QUEUE_HIGH)) == sorted(first)


def test_many_letters_keep_their_order_and_are_requeued(dlq: Dlq, broker: Broker) -> None:
    # So many that the consumers of one look return their messages in several rounds.
    count = 4 * MAX_IN_FLIGHT * MAX_RETURNS
    ids = bury(broker, *(make_delete(lab) for lab in range(1, count + 1)))
    began = time.monotonic()
    listed = dlq("list", "--json", "--limit", "5")
    list_s = time.monotonic() - began
    answer = json.loads(listed.out)
    assert (answer["total"], [letter["task_id"] for letter in answer["messages"]]) == (count, ids[:5])
    for _ in range(3):
        assert dlq("show", ids[count // 2]).code == 0
    assert dlq.ids() == ids
    assert dlq("discard", *ids[::50]).code == 1  # asks for --yes
    assert dlq("discard", *ids[::50], "--yes").code == 0
    left = [task_id for index, task_id in enumerate(ids) if index % 50]
    assert dlq.ids() == left
    began = time.monotonic()
    requeued = dlq("requeue", "--all", "--yes")
    requeue_s = time.monotonic() - began
    assert requeued.code == 0
    assert f"{len(left)} messages requeued, 0 refused" in requeued.out
    assert dlq.ids(topology.QUEUE_HIGH) == left
    print(f"{count} dead letters: list {list_s:.2f} s, requeue of {len(left)} {requeue_s:.2f} s")


def test_bodies_of_ten_megabytes_are_not_kept_in_memory(dlq: Dlq, broker: Broker) -> None:
    bury(broker, make_delete(1))
    small_mib = dlq.peak_mib("list")
    channel = broker.channel()
    channel.confirm_delivery()
    # Few, because the broker has to keep them too.
    count = 5
    for number in range(count):
        sent = pika.BasicProperties(headers={"id": f"big-{number}"}, delivery_mode=2)
        channel.basic_publish("", DLQ, bytes([number]) * 10_000_000, sent)
    began = time.monotonic()
    large_mib = dlq.peak_mib("list")
    print(
        f"{count} bodies of 10 MB: list {time.monotonic() - began:.1f} s,"
        f" {large_mib} MiB at most ({small_mib} without them)"
    )
    assert large_mib - small_mib < 35
    assert dlq("discard", "--all", "--yes").code == 0
    kept = "SELECT body_bytes, octet_length(body) AS kept FROM dead_letter_actions WHERE task_id ~ 'big'"
    rows = [(row["body_bytes"], row["kept"]) for row in dlq.database.rows(kept)]
    assert rows == [(10_000_000, 1024 * 1024)] * count
    assert broker.is_empty(DLQ)


def test_a_database_that_goes_in_the_middle_leaves_the_rest_where_it_is(
    dlq: Dlq, broker: Broker, database: Database
) -> None:
    ids = bury(broker, make_delete(1), make_delete(2))
    database.rows("DROP TABLE dead_letter_actions")
    answer = dlq("requeue", "--all", "--yes")
    assert answer.code == 1
    assert "the database did not record the action" in answer.err
    assert "Traceback" not in answer.err
    assert dlq.ids() == ids
    assert broker.is_empty()


def test_a_broker_that_takes_no_tasks_leaves_messages_and_table_as_they_are(dlq: Dlq, broker: Broker) -> None:
    ids = bury(broker, make_delete(1), make_delete(2))
    broker.channel().queue_delete(topology.QUEUE_HIGH)
    answer = dlq("requeue", "--all", "--yes", environ={"AMQP_PUBLISH_TIMEOUT_S": "1"})
    assert answer.code == 1
    assert "no queue is bound" in answer.err
    assert dlq.ids() == ids
    assert dlq.actions() == []


def test_a_connection_cut_by_the_broker_is_a_sentence(dlq: Dlq, broker: Broker) -> None:
    ids = bury(broker, make_delete(1), make_delete(2))
    # The table is locked, so the command waits for its row while the connection is closed.
    blocker: Any = _lock_table(dlq.database)
    process = dlq.start("discard", "--all", "--yes")
    eventually(dlq.database.waits, what="a waiting row")
    broker.close_connection("autolabs-dlq")
    blocker.close()
    out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 1, out
    assert "the connection to the dead-letter queue failed" in err
    assert "Traceback" not in err
    eventually_equal(lambda: broker.depth(DLQ), 2)
    assert dlq.ids() == ids
    assert dlq("discard", "--all", "--yes").code == 0
    assert broker.is_empty(DLQ)


def _lock_table(database: Database) -> Any:
    opened = psycopg2.connect(database.url)
    opened.cursor().execute("LOCK TABLE dead_letter_actions")
    return opened
