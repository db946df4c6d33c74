"""Messages of every kind in celery.dlq: none stops the commands, none reaches the terminal as it is."""

from __future__ import annotations

import json
import struct
from typing import Any

import pika
import pika.data
import pytest

from dispatcher.broker import topology
from tests.integration.jobs.container.test_poison import POISON
from tests.support.broker.dead_letters import DLQ, Dlq, bury, make_delete
from tests.support.broker.rabbitmq import Broker
from tests.support.database.postgres import Database
from tests.support.factories import make_wire

BODY, HEADERS = make_wire(make_delete(7))
ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e\r\nautolabs: fine"


class Raw(bytes):
    """A field value as it goes over the wire, for what pika would not write."""


def nested(depth: int) -> Raw:
    field = b"V"
    for _ in range(depth):
        table = b"\x01a" + field
        field = b"F" + struct.pack(">I", len(table)) + table
    return Raw(field)


@pytest.fixture
def raw_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    original = pika.data.encode_value

    def encode_value(pieces: list[bytes], value: Any) -> int:
        if not isinstance(value, Raw):
            return int(original(pieces, value))
        pieces.append(bytes(value))
        return len(value)

    monkeypatch.setattr(pika.data, "encode_value", encode_value)


#: What RabbitMQ takes and pika cannot read; the containers lost their connections over it.
UNREADABLE = {
    "a time in the year 10^11": Raw(b"T" + struct.pack(">Q", 2**62)),
    # 18,000 are possible, and take the broker two seconds at each look.
    "tables 2000 deep": nested(2000),
}
ODD: dict[str, tuple[bytes, dict[Any, Any] | None, dict[str, Any]]] = {
    "control characters everywhere": (
        BODY,
        {
            **HEADERS,
            "task": ESCAPE,
            **{
                f"x-autolabs-{name}": ESCAPE
                for name in ("reason", "category", "cause", "task-id", "attempts", "dead-at", "job", "pod")
            },
        },
        {},
    ),
    "a story of wrong types": (
        BODY,
        {
            **HEADERS,
            "x-autolabs-reason": {"a": [1]},
            "x-autolabs-attempts": "many",
            "x-autolabs-lab-instance-id": -1,
            "x-autolabs-dead-at": 5,
            "x-autolabs-cause": b"\xff",
            "x-death": "none",
        },
        {},
    ),
    "a death of wrong types": (
        b"",
        {"x-last-death-reason": 7, "x-last-death-queue": [1], "x-death": [1, {"queue": {}, "time": "x"}]},
        {},
    ),
    "NUL in every text": (b"\x00", {"id": "a\x00", "task": "b\x00", "x-autolabs-reason": "\x00"}, {}),
    "a compressed bomb": (b"x\x9c" + bytes(100), {**HEADERS, "compression": "application/x-gzip"}, {}),
    "an array nested deep": (b"[" * 100_000, HEADERS, {}),
    "a codec that is none": (BODY, HEADERS, {"content_encoding": "rot13"}),
}
GARBAGE = {**{name: found[:3] for name, found in POISON.items()}, **ODD}


@pytest.fixture
def dlq(broker: Broker, database: Database, raw_fields: None) -> Dlq:
    channel = broker.channel()
    channel.confirm_delivery()
    bury(broker, make_delete(1, id="first"))
    for body, headers, properties in GARBAGE.values():
        sent = pika.BasicProperties(
            headers=headers, delivery_mode=2, **{"content_type": "application/json", **properties}
        )
        channel.basic_publish(topology.DEAD_LETTER_EXCHANGE, "lab.create", body, sent)
    for field in UNREADABLE.values():
        headers = {"id": "unreadable", "odd": field, "task": "t"}
        channel.basic_publish("", DLQ, b"x", pika.BasicProperties(headers=headers))
    bury(broker, make_delete(2, id="last"))
    return Dlq(broker, database)


COUNT = len(GARBAGE) + len(UNREADABLE) + 2


def is_harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_garbage_is_listed_shown_and_discarded_beside_tasks(dlq: Dlq, broker: Broker) -> None:
    listed = dlq("list")
    assert (listed.code, listed.err) == (0, "")
    assert is_harmless(listed.out)
    assert f"{COUNT} messages in celery.dlq" in listed.out
    letters = json.loads(dlq("list", "--json").out)["messages"]
    assert [letters[0]["task_id"], letters[-1]["task_id"], len(letters)] == ["first", "last", COUNT]
    assert [letter["problem"] for letter in letters if letter["task_id"] in ("first", "last")] == [None] * 2
    unreadable = json.loads(dlq("show", "unreadable", "--json").out)
    assert [found["task_name"] for found in unreadable] == ["t"] * len(UNREADABLE)
    assert unreadable[0]["headers"]["odd"] == "a time that cannot be read"
    assert is_harmless(dlq("show", "unreadable").out)

    refused = dlq("requeue", "--cause", "unknown", "--yes")
    assert refused.code == 1
    assert is_harmless(refused.err)
    assert broker.depth(DLQ) == COUNT
    assert broker.is_empty()

    discarded = dlq("discard", "--all", "--yes")
    assert (discarded.code, discarded.err) == (0, "")
    assert is_harmless(discarded.out)
    assert broker.is_empty(DLQ)
    rows = dlq.actions()
    assert len(rows) == COUNT
    assert {row["message_key"] for row in rows} == {letter["key"] for letter in letters}
    bodies = [bytes(row["body"]) for row in rows[1:-1]]
    assert bodies[: len(GARBAGE)] == [body for body, _, _ in GARBAGE.values()]


def test_garbage_that_is_forced_goes_out_as_it_was_but_for_its_story(
    broker: Broker, database: Database
) -> None:
    story = {"x-autolabs-reason": "r", "x-death": [{"queue": "q"}], "CC": ["lab.delete"], "x-mine": 1}
    broker.publish(DLQ, b"no JSON", headers={"id": "t", **story}, content_type="text/plain")
    assert Dlq(broker, database)("requeue", "t", "--force").code == 0
    message = broker.take(topology.QUEUE_NORMAL)
    assert (message.body, message.headers) == (b"no JSON", {"id": "t", "x-mine": 1})
    assert message.properties.content_type == "text/plain"
    assert broker.is_empty()
