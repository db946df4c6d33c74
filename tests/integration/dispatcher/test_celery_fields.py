"""Messages of real Celery apps are read field by field, and those of ours by real Celery workers.

Everything runs with the oldest supported Celery and with the newest one.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from dispatcher import CREATE_LAB_POD, Dispatcher
from dispatcher.broker import topology
from dispatcher.broker.publisher import Publisher
from dispatcher.errors import MalformedMessage
from dispatcher.message.envelope import TaskMessage, decode
from dispatcher.tasks import CreateLabPod
from tests.support.broker.celery_versions import CeleryVersion
from tests.support.broker.queues import queue_beside
from tests.support.broker.rabbitmq import Broker, Message, payload_of
from tests.support.factories import create_kwargs, make_task
from tests.support.waiting import HANG_S, eventually

CREATE = {"name": CREATE_LAB_POD, "kwargs": create_kwargs()}


def take_all(broker: Broker, ids: dict[str, str]) -> dict[str, Message]:
    """Return the messages of the calls in the create queue, by call."""
    messages = [broker.take(topology.QUEUE_NORMAL) for _ in ids]
    by_id = {message.headers["id"]: message for message in messages}
    return {call: by_id[task_id] for call, task_id in ids.items()}


#: Header -> what a decoded task has for it. None: written for people, and not kept.
HEADERS: dict[str, Callable[[TaskMessage], Any] | None] = {
    "lang": lambda task: "py",
    "task": lambda task: task.name,
    "id": lambda task: task.id,
    "shadow": lambda task: task.shadow,
    "eta": lambda task: task.eta and task.eta.isoformat(),
    "expires": lambda task: task.expires and task.expires.isoformat(),
    "group": lambda task: task.group,
    "group_index": lambda task: task.group_index,
    "retries": lambda task: task.retries,
    "timelimit": lambda task: list(task.timelimit),
    "root_id": lambda task: task.root_id,
    "parent_id": lambda task: task.parent_id,
    "argsrepr": None,
    "kwargsrepr": None,
    "origin": lambda task: task.origin,
    # Celery writes null or false, and means the same.
    "ignore_result": lambda task: task.ignore_result or (None, False),
    "replaced_task_nesting": lambda task: task.replaced_task_nesting,
    "stamped_headers": lambda task: list(task.stamps) or (None, []),
    "stamps": lambda task: task.stamps,
}
PROPERTIES: dict[str, Callable[[TaskMessage], Any]] = {
    "content_type": lambda task: "application/json",
    "content_encoding": lambda task: "utf-8",
    "correlation_id": lambda task: task.id,
    "reply_to": lambda task: task.reply_to,
    "delivery_mode": lambda task: 2,
    "priority": lambda task: task.priority,
}

#: Call -> headers and properties that it is about, as they are written.
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "by name": ({}, {"priority": 0, "retries": 0, "shadow": None, "timelimit": [None, None]}),
    "by position": ({"kwargs": {}, "args": list(create_kwargs().values())}, {}),
    "priority": ({"priority": 7}, {"priority": 7}),
    "time limits": ({"time_limit": 30, "soft_time_limit": 20}, {"timelimit": [30, 20]}),
    "retries": ({"retries": 2}, {"retries": 2}),
    "id": ({"task_id": "my id"}, {"id": "my id", "correlation_id": "my id", "root_id": "my id"}),
    "reply_to": ({"reply_to": "answers"}, {"reply_to": "answers"}),
    "family": ({"root_id": "r", "parent_id": "p"}, {"root_id": "r", "parent_id": "p"}),
    "group": ({"group_id": "g", "group_index": 3}, {"group": "g", "group_index": 3}),
    "shadow": ({"shadow": "other name"}, {"shadow": "other name"}),
    "ignore_result": ({"ignore_result": True}, {"ignore_result": True}),
    "nesting": ({"replaced_task_nesting": 1}, {"replaced_task_nesting": 1}),
    "stamps": (
        {"stamped_headers": ["who"], "who": "me"},
        {"stamped_headers": ["who"], "stamps": {"who": "me"}},
    ),
    "a header of one's own": ({"headers": {"x-trace": "t"}}, {"x-trace": "t"}),
    "gzip": ({"compression": "gzip"}, {"compression": "application/x-gzip"}),
    "zlib": ({"compression": "zlib"}, {"compression": "application/x-gzip"}),
    "bzip2": ({"compression": "bzip2"}, {"compression": "application/x-bz2"}),
}


def written(message: Message) -> dict[str, Any]:
    """Return headers and those properties that are set."""
    names = ("priority", "reply_to", "correlation_id", "expiration", "content_type", "delivery_mode")
    return {**message.headers, **{name: getattr(message.properties, name) for name in names}}


def differences(message: Message) -> dict[str, tuple[Any, Any]]:
    """Return what was written and what was read of each field where the two are not the same."""
    task = decode(message.body, message.properties)
    found = {}
    for name, read in HEADERS.items():
        theirs = message.headers[name]
        ours = read(task) if read else theirs
        if theirs != ours and not (isinstance(ours, tuple) and theirs in ours):
            found[name] = (theirs, ours)
    for name, read_property in PROPERTIES.items():
        if getattr(message.properties, name) != read_property(task):
            found[name] = (getattr(message.properties, name), read_property(task))
    return found


def test_every_field_that_send_task_writes_is_read(celery_version: CeleryVersion, broker: Broker) -> None:
    sent = celery_version.send(broker.url, {name: {**CREATE, **call} for name, (call, _) in CALLS.items()})
    assert (sent.errors, sent.warnings) == ({}, [])
    messages = take_all(broker, sent.ids)
    assert {name: differences(message) for name, message in messages.items()} == {name: {} for name in CALLS}
    assert {name: payload_of(message) for name, message in messages.items()} == dict.fromkeys(
        CALLS, CreateLabPod(**create_kwargs())
    )
    for name, (_, about) in CALLS.items():
        assert {key: written(messages[name])[key] for key in about} == about, name


def test_celery_writes_no_header_that_is_not_known_here(
    celery_version: CeleryVersion, broker: Broker
) -> None:
    celery_version.send(broker.url, {"create": CREATE})
    message = broker.take(topology.QUEUE_NORMAL)
    assert set(message.headers) == set(HEADERS)
    properties = {name for name, value in vars(message.properties).items() if value is not None}
    assert properties - {"headers"} == set(PROPERTIES)


def test_an_expiry_is_read_and_left_to_the_broker_too(celery_version: CeleryVersion, broker: Broker) -> None:
    before = datetime.now(timezone.utc)
    celery_version.send(broker.url, {"create": {**CREATE, "expires": 90}})
    message = broker.take(topology.QUEUE_NORMAL)
    assert differences(message) == {}
    task = decode(message.body, message.properties)
    assert task.expires is not None
    assert before <= task.expires - timedelta(seconds=90) <= datetime.now(timezone.utc)
    assert message.properties.expiration == "90000"


def test_values_that_kombu_wraps_arrive_plain(celery_version: CeleryVersion, broker: Broker) -> None:
    expected = {
        "uuid": str(uuid.UUID(int=5)),
        "datetime": "2026-01-02T03:04:05+00:00",
        "date": "2026-01-02",
        "time": "03:04:05",
        "decimal": "1.50",
        "bytes": "text",
    }
    sent = celery_version.send(broker.url, {name: {"how": "value", "value": name} for name in expected})
    assert sent.errors == {}
    read = {}
    for name, message in take_all(broker, sent.ids).items():
        (read[name],) = decode(message.body, message.properties).args
    read["uuid"] = str(uuid.UUID(read["uuid"]))
    assert read == expected


def test_bytes_that_are_no_text_are_refused(celery_version: CeleryVersion, broker: Broker) -> None:
    celery_version.send(broker.url, {"bytes": {"how": "value", "value": "not UTF-8"}})
    message = broker.take(topology.QUEUE_NORMAL)
    with pytest.raises(MalformedMessage, match="does not hold text"):
        decode(message.body, message.properties)


@pytest.fixture
def worker(celery_version: CeleryVersion, broker: Broker, tmp_path: Path) -> Iterator[Path]:
    """A real worker of the create tasks; the path of what it recorded."""
    record = tmp_path / "record"
    with ExitStack() as stack:
        queue = topology.QUEUE_NORMAL
        if not celery_version.has_ladder:
            # Before 5.5 a worker sets a prefetch for all of its channel, which quorum queues refuse (540).
            key = topology.binding_key("lab.create")
            queue = stack.enter_context(queue_beside(broker, "worker", key, queue_type="classic"))
        process = celery_version.start_worker(
            tmp_path / "worker.log", AMQP_URL=broker.url, RECORD=str(record), QUEUE=queue
        )
        yield record
        process.kill()  # a warm shutdown takes ten seconds
        process.wait(HANG_S)


def lines_of(record: Path, count: int) -> dict[str, dict[str, Any]]:
    """Return what the worker recorded, by task id, once it is so many lines."""

    def read() -> list[str] | None:
        lines = record.read_text().splitlines() if record.exists() else []
        return lines if len(lines) >= count else None

    lines = [json.loads(line) for line in eventually(read, 2 * HANG_S, what=f"{count} tasks of the worker")]
    assert len(lines) == count
    return {line["id"]: line for line in lines}


def check_a_create(seen: dict[str, Any], task_id: str) -> None:
    expected = {**create_kwargs(), "resources": {"cpu": "1"}, "network_isolated": True}
    assert (seen["args"], seen["kwargs"], seen["retries"]) == ([], expected, 0)
    assert (seen["root_id"], seen["parent_id"], seen["correlation_id"]) == (task_id, None, task_id)


def test_a_real_worker_runs_what_is_published_and_sees_every_field(
    worker: Path, broker: Broker, publisher: Publisher
) -> None:
    with Dispatcher(broker.url) as dispatcher:
        task_id = dispatcher.create_lab(**create_kwargs(resources={"cpu": "1"}))
    now = datetime.now(timezone.utc)
    task = make_task(
        retries=2,
        priority=3,
        expires=now + timedelta(hours=1),
        eta=now + timedelta(seconds=2.5),
        timelimit=(60, 50),
        ignore_result=True,
        root_id="root",
        parent_id="parent",
        group="group",
        group_index=4,
        shadow="other name",
        origin="gen1@host",
        reply_to="answers",
        replaced_task_nesting=1,
        stamps={"who": "me"},
    )
    ran_out = make_task(expires=now - timedelta(hours=1))
    publisher.publish_task(ran_out)
    publisher.publish_task(task)
    lines = lines_of(worker, 2)
    check_a_create(lines.pop(task_id), task_id)
    (seen,) = lines.values()
    assert datetime.fromisoformat(seen.pop("began")) >= now + timedelta(seconds=2.5)
    assert datetime.fromisoformat(seen.pop("eta")) == task.eta
    assert datetime.fromisoformat(seen.pop("expires")) == task.expires
    assert seen == {
        "id": task.id,
        "args": [],
        "kwargs": task.kwargs,
        "retries": 2,
        "priority": 3,
        "timelimit": [60, 50],
        "ignore_result": True,
        "root_id": "root",
        "parent_id": "parent",
        "group": "group",
        "group_index": 4,
        "shadow": "other name",
        "origin": "gen1@host",
        "correlation_id": task.id,
        "reply_to": "answers",
        "replaced_task_nesting": 1,
        "stamps": {"who": "me"},
    }
