"""Messages that are no task of ours, and tasks that fail: each ends where somebody can see it."""

from __future__ import annotations

import json
import struct
from dataclasses import fields
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pika
import pika.data
import pytest

from deploy.local.credentials import Credentials, rabbitmq_definitions
from dispatcher.broker import delay_ladder, topology
from dispatcher.message.envelope import FIRST_ERROR, PUBLISHED_AT
from dispatcher.results import TaskState
from dispatcher.tasks import CLEANUP_TIMEOUT_LABS
from tests.support.broker.rabbitmq import Broker
from tests.support.containers.container import Containers
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_wire
from tests.support.waiting import eventually_equal

BODY, HEADERS = make_wire()
INVALID = "PERMANENT_INVALID_REQUEST"
DEEP: dict[str, Any] = {"a": 1}
for _ in range(50):
    DEEP = {"a": [DEEP]}


def body_of(*args: Any, **kwargs: Any) -> bytes:
    return json.dumps([list(args), kwargs, {}]).encode()


POISON: dict[str, tuple[bytes, dict[Any, Any] | None, dict[str, Any], str]] = {
    "not JSON": (b"hello", HEADERS, {}, "body is not JSON"),
    "empty body": (b"", HEADERS, {}, "body is not JSON"),
    "invalid UTF-8": (b"\xff\xfe\x00", HEADERS, {}, "body is not JSON"),
    "wrong arity": (b"[[], {}]", HEADERS, {}, "three-element"),
    "an object": (b'{"task": "x", "id": "y"}', HEADERS, {}, "three-element"),
    "pickle": (b"\x80\x04.", HEADERS, {"content_type": "application/x-python-serialize"}, "is refused"),
    "no content type": (BODY, HEADERS, {"content_type": None}, "content type None is refused"),
    "no headers": (BODY, None, {}, "header 'task' is missing"),
    "empty headers": (BODY, {}, {}, "header 'task' is missing"),
    "no id": (BODY, {**HEADERS, "id": None}, {}, "header 'id' is missing"),
    "binary id": (BODY, {**HEADERS, "id": b"\xff"}, {}, "header 'id'"),
    "a table as id": (BODY, {**HEADERS, "id": {"x": [1]}}, {}, "header 'id'"),
    "retries as text": (BODY, {**HEADERS, "retries": "three"}, {}, "header 'retries'"),
    "bad eta": (BODY, {**HEADERS, "eta": "soon"}, {}, "header 'eta'"),
    "a chain": (b'[[], {}, {"chain": [1]}]', HEADERS, {}, "asks for chain, which is not supported"),
    "a chord": (
        b'[[], {}, {"errbacks": [1], "chord": {"task": "x"}}]',
        HEADERS,
        {},
        "asks for errbacks, chord, which is not supported",
    ),
    "unknown compression": (BODY, {**HEADERS, "compression": "zstd"}, {}, "compression"),
    "unknown task": (
        BODY,
        {**HEADERS, "task": "celery_workers.nope"},
        {},
        "nope' is unknown",
    ),
    "an id with a blank": (
        body_of(**create_kwargs(lab_instance_id=" 7")),
        HEADERS,
        {},
        "lab_instance_id: ' 7'",
    ),
    "a missing argument": (body_of(lab_instance_id=7), HEADERS, {}, "lab_id: is missing"),
    "an unknown argument": (body_of(**create_kwargs(x=1)), HEADERS, {}, "valid: x: is not an argument"),
    "too many arguments": (body_of(*range(9)), HEADERS, {}, "9 positional arguments"),
    "a huge id": (body_of(**create_kwargs(lab_instance_id=2**80)), HEADERS, {}, "lab_instance_id"),
    "NUL and surrogates": (body_of(**create_kwargs(docker_image="\x00\ud800")), HEADERS, {}, "docker_image"),
    "odd header tables": (
        b"{}",
        {
            **HEADERS,
            "x": Decimal("1.25"),
            "y": datetime(2026, 1, 1, tzinfo=timezone.utc),
            "z": DEEP,
            "b": b"\x00",
        },
        {},
        "three-element",
    ),
    "bytes for a content encoding": (
        BODY,
        HEADERS,
        {"content_encoding": b"\xff"},
        "content encoding b'\\xff'",
    ),
    "bytes for a content type": (BODY, HEADERS, {"content_type": b"\xff"}, "content type b'\\xff'"),
    "bytes for a header's name": (b"{}", {**HEADERS, b"\xff": {b"\xfe": b"\xfd"}}, {}, "three-element"),
    "a table with such a name as id": (BODY, {**HEADERS, "id": {b"\xff": 1}}, {}, "header 'id'"),
    "large headers": (b"{}", {**HEADERS, "padding": "p" * 129_500}, {}, "three-element"),
    "an offset of 20 hours": (
        BODY,
        {**HEADERS, "task": "celery_workers.nope", PUBLISHED_AT: "2026-01-01T00:00:00+20:00"},
        {},
        "is unknown",
    ),
}


@pytest.mark.parametrize("name", POISON)
def test_poison_ends_in_the_dead_letter_queue_with_the_reason(
    containers: Containers, broker: Broker, name: str
) -> None:
    body, headers, properties, reason = POISON[name]
    broker.publish(topology.QUEUE_NORMAL, body, headers=headers, **properties)
    code, container = containers.run_here(JOB_NAME="job-1")
    assert code == 0
    assert "dead_lettered" in container.actions()
    message = broker.take(topology.DEAD_LETTER_QUEUE)
    assert message.body == body
    assert reason in message.headers["x-autolabs-reason"]
    assert message.headers["x-autolabs-category"] == INVALID
    assert message.headers["x-autolabs-queue"] == topology.QUEUE_NORMAL
    assert message.headers["x-autolabs-job"] == "job-1"
    assert message.properties.content_type == properties.get("content_type", "application/json")
    assert broker.is_empty()
    # The task of the first lines is not known: null, or whatever the header holds.
    task_id = (headers or {}).get("id")
    assert all("task_id" in line for line in container.lines())
    (end,) = (line for line in container.lines() if line.get("action") == "dead_lettered")
    assert end["task_id"] == (None if task_id is None else str(task_id))
    assert (headers or {}).items() <= message.headers.items()


@pytest.mark.parametrize("name", ["unknown task", "an unknown argument"])
def test_an_unusable_task_leaves_a_ledger_row(
    containers: Containers, broker: Broker, database: Database, name: str
) -> None:
    body, headers, _, _ = POISON[name]
    broker.publish(topology.QUEUE_NORMAL, body, headers=headers)
    containers.run_here()
    (run,) = database.ledger()
    assert (run["task_id"], run["outcome"], run["error_category"]) == (
        HEADERS["id"],
        "dead_lettered",
        INVALID,
    )


LARGE: dict[str, Any] = {"a text": "x" * 70_000, "a table": {"x": ["y" * 60_000]}, "bytes": b"\xff" * 15_000}


@pytest.mark.parametrize("value", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("key", ["id", "task", "root_id", "eta", "timelimit", "compression", FIRST_ERROR])
def test_no_header_of_any_kind_and_length_fills_the_log_or_the_ledger(
    containers: Containers, broker: Broker, database: Database, key: str, value: Any
) -> None:
    headers = {**HEADERS, "task": "celery_workers.nope", key: value}
    broker.publish(topology.QUEUE_NORMAL, BODY, headers=headers)
    code, container = containers.run_here()
    assert code == 0
    assert max(map(len, container.log.read_text().splitlines())) < 2000
    assert len(json.dumps(database.ledger(), default=str)) < 3000
    message = broker.take(topology.DEAD_LETTER_QUEUE)
    assert (message.body, message.headers[key]) == (BODY, value)


@pytest.mark.parametrize("task", ["celery_workers.create_lab_pod", b"\xff", None])
def test_a_message_that_cannot_be_read_is_a_failure_of_the_id_it_names(
    containers: Containers, broker: Broker, database: Database, task: Any
) -> None:
    broker.publish(topology.QUEUE_NORMAL, b"{", headers={**HEADERS, "task": task, "retries": "x"})
    containers.run_here(JOB_NAME="job-1")
    (run,) = database.ledger()
    assert (run["task_id"], run["outcome"], run["error_category"]) == (
        HEADERS["id"],
        "dead_lettered",
        INVALID,
    )
    assert (run["task_name"], run["job_name"]) == (task if isinstance(task, str) else "", "job-1")
    assert run["error_message"] == broker.take(topology.DEAD_LETTER_QUEUE).headers["x-autolabs-reason"]
    assert database.results.status(HEADERS["id"]).state is TaskState.FAILURE


def test_a_database_that_is_away_keeps_nothing_unreadable_out_of_the_dead_letter_queue(
    containers: Containers, broker: Broker
) -> None:
    broker.publish(topology.QUEUE_NORMAL, b"{", headers=HEADERS)
    code, container = containers.run_here(DATABASE_URL="postgresql://u@127.0.0.1:1/db")
    assert code == 0
    assert "ledger_missed" in container.actions()
    assert broker.take(topology.DEAD_LETTER_QUEUE).body == b"{"
    assert broker.is_empty()


def test_servers_that_stay_away_lose_no_message(containers: Containers, broker: Broker) -> None:
    broker.publish(topology.QUEUE_NORMAL, BODY, headers={**HEADERS, "task": "celery_workers.nope"})
    cleanup_id = broker.publish_task(name=CLEANUP_TIMEOUT_LABS, kwargs={})
    away = "postgresql://u@127.0.0.1:1/db"
    code, no_broker = containers.run_here(AMQP_URL="amqp://u:hidden@127.0.0.1:1/")
    assert code == 69
    assert containers.run_here(DATABASE_URL=away)[0] == 0
    assert (
        containers.run_here(queue=topology.QUEUE_LOW, DATABASE_URL=away, CELERY_TASK_RETRY_DELAY=60)[0] == 0
    )
    assert no_broker.actions()[-1] == "broker_unavailable"
    assert "hidden" not in no_broker.log.read_text()
    assert "is unknown" in broker.take(topology.DEAD_LETTER_QUEUE).headers["x-autolabs-reason"]
    assert broker.take_delayed().headers["id"] == cleanup_id


def test_a_create_with_bad_arguments_fails_its_lab(
    containers: Containers, broker: Broker, database: Database
) -> None:
    lab = database.add_lab()
    broker.publish_task(kwargs=create_kwargs(lab_instance_id=lab, docker_image="Not An Image"))
    code, _ = containers.run_here()
    assert code == 0
    row = database.lab(lab)
    assert (row["status"], row["error_category"]) == ("FAILED", INVALID)
    assert "docker_image" in row["error_message"]
    assert "docker_image" in broker.take(topology.DEAD_LETTER_QUEUE).headers["x-autolabs-reason"]


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_a_create_with_a_follow_up_fails_its_lab_if_nobody_else_started_it(
    containers: Containers, broker: Broker, database: Database, status: str
) -> None:
    lab = database.add_lab(status=status)
    follow_up = [{"task": "x.follow_up", "args": []}]
    task_id = broker.publish_task(kwargs=create_kwargs(lab_instance_id=lab), unsupported={"chain": follow_up})
    code, _ = containers.run_here()
    assert code == 0
    message = broker.take(topology.DEAD_LETTER_QUEUE)
    assert message.headers["id"] == task_id
    assert "asks for chain, which is not supported" in message.headers["x-autolabs-reason"]
    assert json.loads(message.body)[2]["chain"] == follow_up
    row = database.lab(lab)
    if status == "PENDING":
        assert (row["status"], row["error_category"]) == ("FAILED", INVALID)
        assert "asks for chain" in row["error_message"]
    else:
        assert (row["status"], row["error_message"]) == ("RUNNING", None)
    assert database.outcomes() == ["dead_lettered"]


def test_a_follow_up_of_a_task_for_later_is_refused_at_once_and_kept(
    containers: Containers, broker: Broker
) -> None:
    follow_up = [{"task": "x.follow_up"}]
    eta = datetime.now(timezone.utc) + timedelta(hours=5)
    broker.publish_task(eta=eta, unsupported={"chain": follow_up})
    code, _ = containers.run_here()
    assert code == 0
    assert json.loads(broker.take(topology.DEAD_LETTER_QUEUE).body)[2]["chain"] == follow_up


def test_a_job_may_write_what_it_writes_with_the_rights_it_is_given(
    containers: Containers, broker: Broker
) -> None:
    definitions = json.loads(rabbitmq_definitions(Credentials(*["x"] * len(fields(Credentials)))))
    (rights,) = (p for p in definitions["permissions"] if p["user"] == "jobs")
    asked = {name: rights[name] for name in ("configure", "write", "read")}
    containers.environ["AMQP_URL"] = broker.url_of_user(**asked)
    retried = broker.publish_task(kwargs=create_kwargs(lab_instance_id=4711))
    broker.publish(topology.QUEUE_LOW, b"no task")
    queues = (topology.QUEUE_NORMAL, topology.QUEUE_LOW)
    assert [containers.run_here(queue=queue, CELERY_TASK_RETRY_DELAY=60)[0] for queue in queues] == [0, 0]
    assert broker.take_delayed().headers["id"] == retried
    assert broker.take(topology.DEAD_LETTER_QUEUE).body == b"no task"


def test_a_dead_letter_that_came_over_the_ladder_tells_its_plain_routing_key(
    containers: Containers, broker: Broker
) -> None:
    channel = broker.channel()
    sent = pika.BasicProperties(headers={**HEADERS, "x-mine": 1}, content_type="application/json")
    routing_key = delay_ladder.delayed_routing_key(1, "lab.create")
    channel.basic_publish(delay_ladder.ENTRY_EXCHANGE, routing_key, b"no JSON", sent)
    eventually_equal(lambda: broker.depth(topology.QUEUE_NORMAL), 1)
    code, _ = containers.run_here()
    assert code == 0
    message = broker.take(topology.DEAD_LETTER_QUEUE)
    assert message.headers["x-autolabs-routing-key"] == message.routing_key == "lab.create"
    assert message.headers["x-mine"] == 1


def test_a_routing_key_that_is_no_text_keeps_nothing_out_of_the_dead_letter_queue(
    containers: Containers, broker: Broker
) -> None:
    routing_key: Any = b"\xff." + b"lab.create"
    sent = pika.BasicProperties(headers=HEADERS, content_type="application/json")
    broker.channel().basic_publish(delay_ladder.DELIVERY_EXCHANGE, routing_key, b"no JSON", sent)
    eventually_equal(lambda: broker.depth(topology.QUEUE_NORMAL), 1)
    code, _ = containers.run_here()
    assert code == 0
    assert broker.take(topology.DEAD_LETTER_QUEUE).headers["x-autolabs-routing-key"] == ".lab.create"


def test_a_header_that_the_library_cannot_read_costs_no_container_its_connection(
    containers: Containers, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_value = pika.data.encode_value

    def encode_year_146_billion(pieces: list[bytes], value: Any) -> int:
        if value != "far future":
            return int(encode_value(pieces, value))
        pieces.append(struct.pack(">cQ", b"T", 2**62))
        return 9

    monkeypatch.setattr(pika.data, "encode_value", encode_year_146_billion)
    broker.publish(topology.QUEUE_NORMAL, BODY, headers={**HEADERS, "x": "far future"})
    monkeypatch.undo()
    code, container = containers.run_here()
    assert code == 0, container.actions()
    assert broker.is_empty()
