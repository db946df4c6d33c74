"""Our codec and our settings against the installed Celery and kombu.

test_oldest_celery.py runs this file once more with the oldest that is supported.
"""

from __future__ import annotations

import json
import uuid
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pika
import pytest
from celery import Celery
from celery.worker.request import Request
from kombu import Connection, serialization
from kombu.compression import compress
from kombu.message import Message
from kombu.utils import json as kombu_json

from dispatcher import celery_config, tasks
from dispatcher.broker import topology
from dispatcher.message.body import unwrap
from dispatcher.message.envelope import TaskMessage, decode, encode, next_attempt
from tests.support.factories import create_kwargs, make_task

STORED = Path(__file__).parents[1] / "data" / "messages"


@pytest.fixture(scope="module")
def app() -> Celery:
    app = Celery("backend", broker="memory://", set_as_current=False)
    app.conf.update(celery_config())

    @app.task(name=tasks.CREATE_LAB_POD)  # type: ignore[untyped-decorator]
    def create_lab_pod(**_kwargs: Any) -> None:
        """Stand for a worker's task; it is never called."""

    return app


def sent_by_celery(app: Celery, *args: Any, compression: str | None = None, **options: Any) -> TaskMessage:
    message = app.amqp.as_task_v2("task-1", tasks.CREATE_LAB_POD, list(args), **options)
    content_type, encoding, body = serialization.dumps(message.body, serializer="json")
    headers = dict(message.headers)
    raw = body.encode() if isinstance(body, str) else body
    if compression:
        raw, headers["compression"] = compress(raw, compression)
    sent = pika.BasicProperties(headers=headers, content_type=content_type, content_encoding=encoding)
    return decode(raw, sent)


def test_what_celery_sends_is_read(app: Celery) -> None:
    task = sent_by_celery(app, kwargs=create_kwargs())
    assert (task.name, task.id, task.args) == (tasks.CREATE_LAB_POD, "task-1", [])
    assert tasks.parse_payload(task.name, task.args, task.kwargs)
    assert (task.retries, task.eta, task.expires, task.root_id) == (0, None, None, "task-1")
    assert task.unsupported == {}


def test_times_that_celery_sends_are_read(app: Celery) -> None:
    before = datetime.now(timezone.utc)
    task = sent_by_celery(app, kwargs={}, countdown=60, expires=120, retries=2)
    assert task.eta is not None
    assert task.expires is not None
    assert before <= task.eta - timedelta(seconds=60) <= datetime.now(timezone.utc)
    assert timedelta(seconds=55) < task.expires - task.eta < timedelta(seconds=65)
    assert task.retries == 2


@pytest.mark.parametrize("compression", ["gzip", "bzip2"])
def test_what_celery_compresses_is_read(app: Celery, compression: str) -> None:
    assert sent_by_celery(app, kwargs=create_kwargs(), compression=compression).kwargs == create_kwargs()


def test_values_that_kombu_wraps_are_read(app: Celery) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    some_uuid = uuid.UUID(int=5)
    task = sent_by_celery(app, some_uuid, moment, moment.date(), Decimal("1.5"), b"text", kwargs={})
    assert str(task.args[0]).replace("-", "") == some_uuid.hex
    assert datetime.fromisoformat(task.args[1]) == moment
    assert task.args[2:] == ["2026-01-02", "1.5", "text"]


@pytest.mark.parametrize("option", ["callbacks", "errbacks", "chain"])
def test_a_follow_up_task_is_noticed_rather_than_forgotten(app: Celery, option: str) -> None:
    follow_up: Any = {option: [app.signature("x.follow_up")]}
    task = sent_by_celery(app, kwargs=create_kwargs(), **follow_up)
    assert list(task.unsupported) == [option]
    assert task.unsupported[option][0]["task"] == "x.follow_up"
    assert tasks.parse_payload(task.name, task.args, task.kwargs) == tasks.CreateLabPod(**create_kwargs())


def test_the_body_of_a_chord_is_noticed_too(app: Celery) -> None:
    task = sent_by_celery(app, kwargs=create_kwargs(), chord=app.signature("x.body"))
    assert list(task.unsupported) == ["chord"]


def test_the_names_of_the_headers_are_celerys(app: Celery) -> None:
    theirs = set(app.amqp.as_task_v2("task-1", "name", [], {}).headers)
    ours = set(encode(make_task())[1]["headers"])
    assert theirs - ours == set()
    assert ours - theirs == {"autolabs_published_at"}


@pytest.mark.parametrize(
    "task",
    [
        make_task(),
        make_task(retries=3),
        next_attempt(make_task(args=[1, 2, 3], kwargs={})),
        make_task(expires=datetime.now(timezone.utc) + timedelta(hours=1), parent_id="p", root_id="r"),
    ],
    ids=["first", "third retry", "by position", "expires"],
)
def test_what_we_send_is_a_request_for_a_celery_worker(app: Celery, task: TaskMessage) -> None:
    body, sent = encode(task)
    message = Message(
        body=body,
        headers=sent["headers"],
        content_type=sent["content_type"],
        content_encoding=sent["content_encoding"],
        properties={"correlation_id": task.id, "delivery_info": {"redelivered": False}},
        accept=["application/json"],
    )
    request = Request(message, app=app, task=app.tasks[task.name], decoded=False)
    assert (request.id, request.name) == (task.id, task.name)
    args, kwargs, embed = message.payload
    assert (args, kwargs) == (task.args, task.kwargs)
    assert embed == {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    assert not request.revoked()


def test_a_plain_app_routes_every_task_as_the_dispatcher_does(app: Celery) -> None:
    for name, routing_key in tasks.ROUTING_KEYS.items():
        route = app.amqp.router.route({}, name)
        assert (route["exchange"], route["routing_key"]) == (topology.TASKS_EXCHANGE, routing_key)
        # With a queue Celery would declare it, which a backend's broker user may not.
        assert "queue" not in route


def test_a_plain_app_knows_the_queues_of_the_topology(app: Celery) -> None:
    known = {
        queue.name: (queue.durable, queue.queue_arguments, queue.exchange.name, queue.exchange.type)
        for queue in app.amqp.queues.values()
    }
    expected = (True, topology.task_queue_arguments(), topology.TASKS_EXCHANGE, "topic")
    assert known == dict.fromkeys(topology.BINDINGS, expected)
    assert all(queue.routing_key in topology.BINDINGS[queue.name] for queue in app.amqp.queues.values())


def test_a_plain_app_waits_for_confirms(app: Celery) -> None:
    with Connection("amqp://", transport_options=app.conf.broker_transport_options) as connection:
        assert connection.transport_options["confirm_publish"] is True


@pytest.mark.parametrize("result_backend", [None, "redis://127.0.0.1:1/0"])
def test_results_are_looked_for_only_where_told(result_backend: str | None) -> None:
    app = Celery("backend", broker="memory://", backend="rpc://", set_as_current=False)
    app.conf.update(celery_config(result_backend=result_backend))
    assert app.conf.result_backend == (result_backend or "rpc://")
    assert app.conf.result_serializer == "json"


@pytest.mark.parametrize("path", sorted(STORED.glob("*.json")), ids=lambda path: path.stem)
def test_messages_of_earlier_releases_are_still_read(path: Path) -> None:
    stored = json.loads(path.read_text())
    task = decode(stored.pop("body").encode(), pika.BasicProperties(**stored))
    assert task.id == stored["headers"]["id"]
    assert tasks.parse_payload(task.name, task.args, task.kwargs) == tasks.CreateLabPod(**create_kwargs())


@pytest.mark.parametrize(
    "value",
    [
        {"__type__": "datetime"},
        {"__type__": "wat", "value": 1},
        {"__type__": "decimal", "__value__": "1.5", "note": None},
        {"__value__": 1},
    ],
    ids=str,
)
def test_what_only_resembles_a_wrapped_value_is_left_as_it_is_by_us_and_by_kombu(
    value: dict[str, Any],
) -> None:
    written = json.dumps([value])
    assert json.loads(written, object_hook=unwrap) == kombu_json.loads(written) == [value]


ENCODINGS = [
    "utf-8",
    "UTF-8",
    "utf8",
    "UTF8",
    "latin-1",
    "ISO-8859-1",
    "us-ascii",
    "binary",
    "ASCII-8BIT",
    "",
    None,
]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_content_encoding_means_the_same_to_kombu_and_to_us(encoding: str | None) -> None:
    body = json.dumps([[], {"note": "né"}, {}], ensure_ascii=False).encode()
    theirs = serialization.loads(body, "application/json", encoding, accept={"application/json"})
    headers = {"task": tasks.DELETE_LAB_POD, "id": "task-1"}
    sent = pika.BasicProperties(headers=headers, content_type="application/json", content_encoding=encoding)
    assert decode(body, sent).kwargs == theirs[1]


def test_what_celery_sends_by_protocol_1_is_read(app: Celery) -> None:
    message = app.amqp.as_task_v1("task-1", tasks.DELETE_LAB_POD, [], {"lab_instance_id": 7}, countdown=60)
    content_type, encoding, body = serialization.dumps(message.body, serializer="json")
    raw = body.encode() if isinstance(body, str) else body
    sent = pika.BasicProperties(headers=message.headers, content_type=content_type, content_encoding=encoding)
    task = decode(raw, sent)
    assert (task.name, task.id, task.kwargs) == (tasks.DELETE_LAB_POD, "task-1", {"lab_instance_id": 7})
    assert task.eta is not None
