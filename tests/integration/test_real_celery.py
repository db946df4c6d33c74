"""Real Celery apps publish to our containers, and real Celery workers run what we publish.

Everything runs with the oldest supported Celery and with the newest one.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from dispatcher import (
    CLEANUP_TIMEOUT_LABS,
    CREATE_LAB_POD,
    DELETE_LAB_POD,
    Dispatcher,
    ladder,
    topology,
)
from dispatcher.errors import MalformedMessage
from dispatcher.message import TaskMessage, decode, encode
from dispatcher.publisher import Publisher
from dispatcher.tasks import CreateLabPod, DeleteLabPod, parse_payload
from tests.support.celery_versions import VERSIONS, CeleryVersion
from tests.support.container import Containers
from tests.support.factories import create_kwargs, make_task
from tests.support.postgres import Database
from tests.support.rabbitmq import Broker, Message
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import eventually

CREATE = {"name": CREATE_LAB_POD, "kwargs": create_kwargs()}
CLEANUP = {"name": CLEANUP_TIMEOUT_LABS}
#: A chord's app needs a result backend; this one ends with its process.
RESULTS = "cache+memory://"


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def celery_version(request: pytest.FixtureRequest) -> CeleryVersion:
    version: CeleryVersion = request.param
    return version


def payload_of(message: Message) -> Any:
    task = decode(message.body, message.properties)
    return parse_payload(task.name, task.args, task.kwargs)


def take_all(broker: Broker, ids: dict[str, str]) -> dict[str, Message]:
    """Return the messages of the calls in the create queue, by call."""
    messages = [broker.take(topology.QUEUE_NORMAL) for _ in ids]
    by_id = {message.headers["id"]: message for message in messages}
    return {call: by_id[task_id] for call, task_id in ids.items()}


def test_send_task_reaches_the_queue_of_its_priority(celery_version: CeleryVersion, broker: Broker) -> None:
    delete = {"name": DELETE_LAB_POD, "args": [5]}
    sent = celery_version.send(broker.url, {"create": CREATE, "delete": delete, "cleanup": CLEANUP})
    assert (sent.errors, sent.warnings) == ({}, [])
    assert [broker.depth(queue) for queue in topology.BINDINGS] == [1, 1, 1]
    message = broker.take(topology.QUEUE_NORMAL)
    assert message.headers["id"] == sent.ids["create"]
    assert payload_of(message) == CreateLabPod(**create_kwargs())
    assert payload_of(broker.take(topology.QUEUE_HIGH)) == DeleteLabPod(lab_instance_id=5)


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
    assert timedelta(seconds=90) <= task.expires - before < timedelta(seconds=120)
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


@pytest.mark.parametrize("serializer", ["pickle", "yaml"])
def test_a_serializer_that_can_run_code_is_refused(
    celery_version: CeleryVersion, broker: Broker, containers: Containers, serializer: str
) -> None:
    sent = celery_version.send(broker.url, {"create": {**CREATE, "serializer": serializer}})
    code, _ = containers.run()
    assert code == 0
    message = broker.take(topology.DEAD_LETTER_QUEUE)
    assert message.headers["id"] == sent.ids["create"]
    assert "is refused" in message.headers["x-autolabs-reason"]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"how": "chain", "first": CLEANUP_TIMEOUT_LABS, "then": DELETE_LAB_POD}, "asks for chain,"),
        ({"how": "link", "name": CLEANUP_TIMEOUT_LABS, "link": DELETE_LAB_POD}, "asks for callbacks,"),
        (
            {"how": "link_error", "name": CLEANUP_TIMEOUT_LABS, "link_error": DELETE_LAB_POD},
            "asks for errbacks,",
        ),
        ({"how": "chord", "names": [CLEANUP_TIMEOUT_LABS] * 2, "body": DELETE_LAB_POD}, "asks for chord,"),
    ],
    ids=["chain", "link", "link_error", "chord"],
)
def test_a_task_with_a_follow_up_is_in_the_dead_letters_with_it(
    celery_version: CeleryVersion,
    broker: Broker,
    containers: Containers,
    database: Database,
    call: dict[str, Any],
    reason: str,
) -> None:
    sent = celery_version.send(broker.url, {"call": call}, RESULT_BACKEND=RESULTS)
    assert sent.errors == {}
    code, _ = containers.run(queue=topology.QUEUE_LOW)
    assert code == 0
    message = broker.take(topology.DEAD_LETTER_QUEUE)
    assert message.headers["id"] in sent.ids["call"]
    assert reason in message.headers["x-autolabs-reason"]
    assert DELETE_LAB_POD in message.body.decode()
    assert database.outcomes() == ["dead_lettered"]


def test_the_tasks_of_a_group_run_each_for_itself(
    celery_version: CeleryVersion, broker: Broker, containers: Containers, database: Database
) -> None:
    calls = {"group": {"how": "group", "names": [CLEANUP_TIMEOUT_LABS] * 2}}
    sent = celery_version.send(broker.url, calls)
    assert [containers.run(queue=topology.QUEUE_LOW)[0] for _ in range(2)] == [0, 0]
    assert sorted(run["task_id"] for run in database.ledger()) == sorted(sent.ids["group"])
    assert database.outcomes() == ["succeeded", "succeeded"]


@pytest.mark.parametrize("when", [{"countdown": 3.7}, {"eta_in": 3.7}], ids=["countdown", "eta"])
def test_a_task_for_later_is_run_once_when_it_is_due(
    celery_version: CeleryVersion,
    broker: Broker,
    containers: Containers,
    database: Database,
    when: dict[str, float],
) -> None:
    began = datetime.now(timezone.utc)
    sent = celery_version.send(broker.url, {"later": {**CLEANUP, **when}})
    assert (sent.errors, sent.warnings) == ({}, [])
    # The oldest Celery sends it to the queue at once, where a container puts it on the ladder.
    for _ in range(1 if celery_version.has_ladder else 2):
        code, process = containers.run(queue=topology.QUEUE_LOW, CLAIM_WAIT_S=20)
        assert code == 0
    (run,) = database.ledger()
    assert (run["task_id"], run["outcome"]) == (sent.ids["later"], "succeeded")
    assert run["finished_at"] >= began + timedelta(seconds=3.7)
    assert "parked" not in process.actions()
    assert broker.is_empty()
    assert broker.delayed() == 0


def test_a_task_for_later_is_held_by_the_broker_where_celery_can(broker: Broker) -> None:
    calls = {
        "countdown": {**CREATE, "countdown": 100},
        "eta": {**CREATE, "eta_in": 200.5},
        "unknown task": {"name": "x.y", "countdown": 300},
        "queue": {**CREATE, "queue": topology.QUEUE_LOW, "countdown": 400},
    }
    newest = next(version for version in VERSIONS if version.has_ladder)
    sent = newest.send(broker.url, calls)
    assert (sent.errors, sent.warnings) == ({}, [])
    held = [broker.take_delayed() for _ in calls]
    assert {m.headers["id"]: (m.delay_s, ladder.plain_routing_key(m.routing_key)) for m in held} == {
        sent.ids["countdown"]: (100, "lab.create"),
        sent.ids["eta"]: (200, "lab.create"),
        sent.ids["unknown task"]: (300, "lab.create"),
        sent.ids["queue"]: (400, "lab.cleanup"),
    }


def test_less_than_a_second_later_is_refused_by_celerys_own_ladder(broker: Broker) -> None:
    newest = next(version for version in VERSIONS if version.has_ladder)
    sent = newest.send(broker.url, {"later": {**CREATE, "countdown": 0.5}})
    assert "countdown must be a positive number" in sent.errors["later"]


def test_async_result_sees_what_became_of_a_task(
    celery_version: CeleryVersion, broker: Broker, containers: Containers, redis_url: str
) -> None:
    containers.environ["CELERY_RESULT_BACKEND"] = redis_url
    cleanup = containers.start(queue=topology.QUEUE_LOW, CLAIM_WAIT_S=30)
    create = containers.start(CLAIM_WAIT_S=30)
    bad = {**CREATE, "kwargs": create_kwargs(docker_image="Not An Image")}
    calls = {
        "done": {"how": "call", **CLEANUP},
        "failed": {"how": "call", **bad},
        "unknown": {"how": "state", "task_id": "nobody has sent it"},
    }
    found = celery_version.send(broker.url, calls, RESULT_BACKEND=redis_url)
    assert (found.errors, found.warnings) == ({}, [])
    assert (cleanup.wait(), create.wait()) == (0, 0)
    assert (found.ids["done"]["state"], found.ids["done"]["result"]) == ("SUCCESS", {"deletes_published": 0})
    assert found.ids["failed"]["state"] == "FAILURE"
    assert "PERMANENT_INVALID_REQUEST" in found.ids["failed"]["exception"]
    assert found.ids["unknown"] == "PENDING"
    # Another process, later.
    again = {name: {"how": "result", "task_id": found.ids[name]["id"]} for name in ("done", "failed")}
    assert celery_version.send(broker.url, again, RESULT_BACKEND=redis_url).ids == {
        name: found.ids[name] for name in again
    }


def test_async_result_sees_that_a_task_was_revoked(
    celery_version: CeleryVersion, broker: Broker, containers: Containers, redis_url: str
) -> None:
    containers.environ["CELERY_RESULT_BACKEND"] = redis_url
    long_ago = datetime.now(timezone.utc) - timedelta(hours=1)
    task = make_task(name=CLEANUP_TIMEOUT_LABS, kwargs={}, expires=long_ago)
    body, how = encode(task)
    broker.publish(topology.QUEUE_LOW, body, headers=how["headers"])
    containers.run(queue=topology.QUEUE_LOW)
    calls = {"revoked": {"how": "result", "task_id": task.id}}
    found = celery_version.send(broker.url, calls, RESULT_BACKEND=redis_url).ids["revoked"]
    assert found["state"] == "REVOKED"
    assert "TaskRevokedError" in found["exception"]


def test_without_its_result_backend_a_task_is_sent_only_if_the_result_is_ignored(
    celery_version: CeleryVersion, broker: Broker
) -> None:
    calls = {"wanted": CLEANUP, "ignored": {**CREATE, "ignore_result": True}}
    started = time.monotonic()
    sent = celery_version.send(broker.url, calls, RESULT_BACKEND="redis://127.0.0.1:1/0")
    assert time.monotonic() - started < 15
    assert (list(sent.ids), list(sent.errors)) == (["ignored"], ["wanted"])
    assert broker.is_empty(topology.QUEUE_LOW)
    assert broker.take(topology.QUEUE_NORMAL).headers["id"] == sent.ids["ignored"]


def test_a_message_that_no_queue_takes_is_an_error_for_the_sender(
    celery_version: CeleryVersion, broker: Broker
) -> None:
    channel = broker.channel()
    for key in topology.BINDINGS[topology.QUEUE_HIGH]:
        channel.queue_unbind(topology.QUEUE_HIGH, topology.TASKS_EXCHANGE, topology.binding_key(key))
    sent = celery_version.send(
        broker.url, {"delete": {"name": DELETE_LAB_POD, "args": [5]}, "create": CREATE}
    )
    assert "NO_ROUTE" in sent.errors["delete"]
    assert list(sent.ids) == ["create"]
    assert broker.depth(topology.QUEUE_NORMAL) == 1


def test_a_full_queue_is_an_error_for_the_sender(celery_version: CeleryVersion, broker: Broker) -> None:
    arguments = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
    channel = broker.channel()
    channel.queue_declare("full", durable=True, arguments=arguments)
    channel.queue_bind("full", topology.TASKS_EXCHANGE, "lab.create")
    sent = celery_version.send(broker.url, {str(n): {**CREATE, "retry": False} for n in range(20)})
    assert "MessageNacked" in next(iter(sent.errors.values()))


def test_a_broker_that_does_not_confirm_is_an_error_for_the_sender(
    celery_version: CeleryVersion, broker: Broker
) -> None:
    with TcpProxy.to(broker.url) as proxy:

        def freeze_at_the_second(data: bytes) -> bool:
            if b"unconfirmed" in data:
                proxy.freeze()
            return False

        proxy.swallow_answer_to = freeze_at_the_second
        frozen = {**CREATE, "retry": False, "shadow": "unconfirmed"}
        calls = {"first": CREATE, "frozen": frozen}
        sent = celery_version.send(proxy.through(broker.url), calls, CONFIRM_TIMEOUT_S="1.5")
    assert list(sent.ids) == ["first"]
    assert "timed out" in sent.errors["frozen"]


def test_a_backend_needs_to_write_to_two_exchanges_and_no_more(
    celery_version: CeleryVersion, broker: Broker
) -> None:
    write = r"^(autolabs\.tasks|celery_delayed_27)$"
    url = broker.url_of_user(configure="^$", write=write, read="^$")
    sent = celery_version.send(url, {"now": CREATE, "later": {**CREATE, "countdown": 2}})
    assert (sent.errors, sent.warnings) == ({}, [])
    with Dispatcher(url) as dispatcher:
        dispatcher.create_lab(**create_kwargs())
    ids = {broker.take(topology.QUEUE_NORMAL, timeout_s=10).headers["id"] for _ in range(3)}
    assert ids > set(sent.ids.values())


def test_a_plain_app_needs_only_exchange_and_routing_key(broker: Broker) -> None:
    app = Celery("plain", broker=broker.url, set_as_current=False)
    app.send_task(CREATE_LAB_POD, kwargs=create_kwargs(), exchange="autolabs.tasks", routing_key="lab.create")
    app.close()
    assert payload_of(broker.take(topology.QUEUE_NORMAL)) == CreateLabPod(**create_kwargs())


@pytest.fixture
def worker(celery_version: CeleryVersion, broker: Broker, tmp_path: Path) -> Iterator[Path]:
    """A real worker of the create tasks; the path of what it recorded."""
    queue = topology.QUEUE_NORMAL
    if not celery_version.has_ladder:
        # Before 5.5 a worker sets a prefetch for all of its channel, which quorum queues refuse (540).
        queue = "classic"
        channel = broker.channel()
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "classic"})
        channel.queue_bind(queue, topology.TASKS_EXCHANGE, topology.binding_key("lab.create"))
    record = tmp_path / "record"
    process = celery_version.start_worker(
        tmp_path / "worker.log", AMQP_URL=broker.url, RECORD=str(record), QUEUE=queue
    )
    yield record
    process.kill()  # a warm shutdown takes ten seconds
    process.wait(10)


def lines_of(record: Path, count: int) -> dict[str, dict[str, Any]]:
    """Return what the worker recorded, by task id, once it is so many lines."""

    def read() -> list[str] | None:
        lines = record.read_text().splitlines() if record.exists() else []
        return lines if len(lines) >= count else None

    lines = [json.loads(line) for line in eventually(read, 60, what=f"{count} tasks of the worker")]
    assert len(lines) == count
    return {line["id"]: line for line in lines}


def test_a_real_worker_runs_what_the_dispatcher_publishes(worker: Path, broker: Broker) -> None:
    with Dispatcher(broker.url) as dispatcher:
        task_id = dispatcher.create_lab(**create_kwargs(resources={"cpu": "1"}))
    seen = lines_of(worker, 1)[task_id]
    expected = {**create_kwargs(), "resources": {"cpu": "1"}, "network_isolated": True}
    assert (seen["args"], seen["kwargs"], seen["retries"]) == ([], expected, 0)
    assert (seen["root_id"], seen["parent_id"], seen["correlation_id"]) == (task_id, None, task_id)


def test_a_real_worker_sees_every_field_that_is_published(
    worker: Path, broker: Broker, publisher: Publisher
) -> None:
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
    (seen,) = lines_of(worker, 1).values()
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
