"""A real Celery app publishes to our containers, and a real Celery worker runs what we publish."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from dispatcher import (
    CLEANUP_TIMEOUT_LABS,
    CREATE_LAB_POD,
    DELETE_LAB_POD,
    Dispatcher,
    celery_config,
    topology,
)
from dispatcher.message import decode
from dispatcher.tasks import CreateLabPod, parse_payload
from tests.support.container import ROOT, Containers
from tests.support.factories import create_kwargs
from tests.support.postgres import Database
from tests.support.rabbitmq import Broker, Message
from tests.support.waiting import eventually


@pytest.fixture
def app(broker: Broker) -> Iterator[Celery]:
    app = Celery("backend", broker=broker.url, set_as_current=False)
    app.conf.update(celery_config())
    yield app
    app.close()


@pytest.fixture
def plain_app(broker: Broker) -> Iterator[Celery]:
    """An app that knows nothing of ours but the name of the exchange and its routing key."""
    app = Celery("plain", broker=broker.url, set_as_current=False)
    yield app
    app.close()


def payload_of(message: Message) -> Any:
    task = decode(message.body, message.properties)
    return parse_payload(task.name, task.args, task.kwargs)


def test_send_task_reaches_the_queue_of_its_priority(app: Celery, broker: Broker) -> None:
    result = app.send_task(CREATE_LAB_POD, kwargs=create_kwargs())
    app.send_task(DELETE_LAB_POD, args=[5])
    app.send_task(CLEANUP_TIMEOUT_LABS)
    assert [broker.depth(queue) for queue in topology.BINDINGS] == [1, 1, 1]
    message = broker.take(topology.QUEUE_NORMAL)
    assert message.headers["id"] == result.id
    assert payload_of(message) == CreateLabPod(**create_kwargs())


def test_send_task_works_before_the_topology_is_declared(bare_broker: Broker) -> None:
    app = Celery("early", broker=bare_broker.url, set_as_current=False)
    app.conf.update(celery_config())
    with app.connection_for_write() as connection:
        for queue in app.amqp.queues.values():
            queue(connection).declare()
    bare_broker.declare()  # the arguments are the same: no 406
    app.send_task(CREATE_LAB_POD, kwargs=create_kwargs())
    assert bare_broker.depth(topology.QUEUE_NORMAL) == 1
    app.close()


def test_a_plain_app_needs_only_exchange_and_routing_key(plain_app: Celery, broker: Broker) -> None:
    plain_app.send_task(
        CREATE_LAB_POD, kwargs=create_kwargs(), exchange="autolabs.tasks", routing_key="lab.create"
    )
    assert payload_of(broker.take(topology.QUEUE_NORMAL)) == CreateLabPod(**create_kwargs())


def test_a_full_queue_is_an_error_for_the_sender(app: Celery, broker: Broker) -> None:
    arguments = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
    channel = broker.channel()
    channel.queue_declare("full", durable=True, arguments=arguments)
    channel.queue_bind("full", topology.TASKS_EXCHANGE, "lab.create")

    def fill() -> None:
        for _ in range(20):
            app.send_task(CREATE_LAB_POD, kwargs=create_kwargs(), retry=False)

    with pytest.raises(OperationalError) as caught:
        fill()
    assert type(caught.value.__cause__).__name__ == "MessageNacked"


@pytest.mark.parametrize("how", ["countdown", "eta"])
def test_a_task_for_later_reaches_its_queue(app: Celery, broker: Broker, how: str) -> None:
    later = datetime.now(timezone.utc) + timedelta(seconds=60)
    options: dict[str, Any] = {"countdown": 60} if how == "countdown" else {"eta": later}
    app.send_task(CREATE_LAB_POD, kwargs=create_kwargs(), **options)
    message = broker.take(topology.QUEUE_NORMAL)
    assert abs((datetime.fromisoformat(message.headers["eta"]) - later).total_seconds()) < 10


def test_a_container_runs_what_celery_sends(
    app: Celery, broker: Broker, containers: Containers, database: Database
) -> None:
    result = app.send_task(CLEANUP_TIMEOUT_LABS)
    code, _ = containers.run(queue=topology.QUEUE_LOW)
    assert code == 0
    assert [(run["task_id"], run["outcome"]) for run in database.ledger()] == [(result.id, "succeeded")]


@pytest.fixture
def worker(broker: Broker, tmp_path: Path) -> Iterator[Path]:
    """A real worker on the create queue; the path of what it recorded."""
    record = tmp_path / "record"
    environ = {**os.environ, "AMQP_URL": broker.url, "RECORD": str(record)}
    command = [sys.executable, "-m", "celery", "-A", "tests.integration.celery_worker", "worker"]
    command += ["--pool", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    with (tmp_path / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log)
    yield record
    process.kill()  # a warm shutdown takes ten seconds
    process.wait(10)


def test_a_real_worker_runs_what_the_dispatcher_publishes(worker: Path, broker: Broker) -> None:
    with Dispatcher(broker.url) as dispatcher:
        task_id = dispatcher.create_lab(**create_kwargs(resources={"cpu": "1"}))
    text = eventually(lambda: worker.read_text() if worker.exists() else "", 40, what="the worker's record")
    expected = {**create_kwargs(), "resources": {"cpu": "1"}, "network_isolated": True}
    assert json.loads(text) == {"id": task_id, "retries": 0, "kwargs": expected}
    eventually(broker.is_empty)
