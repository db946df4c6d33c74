"""Real Celery apps send tasks to our containers: follow-ups, delays, results and errors of a send.

Everything runs with the oldest supported Celery and with the newest one.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery

from dispatcher import CLEANUP_TIMEOUT_LABS, CREATE_LAB_POD, DELETE_LAB_POD, Dispatcher
from dispatcher.broker import delay_ladder, topology
from dispatcher.message.envelope import encode
from dispatcher.tasks import CreateLabPod, DeleteLabPod
from tests.support.broker.celery_versions import VERSIONS, CeleryVersion, close_app
from tests.support.broker.queues import full_queue
from tests.support.broker.rabbitmq import Broker, payload_of
from tests.support.broker.tcp_proxy import TcpProxy
from tests.support.containers.container import Containers
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_task
from tests.support.waiting import HANG_S, SOON_S, eventually

CREATE = {"name": CREATE_LAB_POD, "kwargs": create_kwargs()}
CLEANUP = {"name": CLEANUP_TIMEOUT_LABS}
#: A chord's app needs a result backend; this one ends with its process.
RESULTS = "cache+memory://"


def test_send_task_reaches_the_queue_of_its_priority(celery_version: CeleryVersion, broker: Broker) -> None:
    delete = {"name": DELETE_LAB_POD, "args": [5]}
    sent = celery_version.send(broker.url, {"create": CREATE, "delete": delete, "cleanup": CLEANUP})
    assert (sent.errors, sent.warnings) == ({}, [])
    assert [broker.depth(queue) for queue in topology.BINDINGS] == [1, 1, 1]
    message = broker.take(topology.QUEUE_NORMAL)
    assert message.headers["id"] == sent.ids["create"]
    assert payload_of(message) == CreateLabPod(**create_kwargs())
    assert payload_of(broker.take(topology.QUEUE_HIGH)) == DeleteLabPod(lab_instance_id=5)


@pytest.mark.parametrize("serializer", ["pickle", "yaml"])
def test_a_serializer_that_can_run_code_is_refused(
    celery_version: CeleryVersion, broker: Broker, containers: Containers, serializer: str
) -> None:
    sent = celery_version.send(broker.url, {"create": {**CREATE, "serializer": serializer}})
    code, _ = containers.run_here()
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
    sent = celery_version.send(broker.url, {"call": call}, result_backend=RESULTS)
    assert sent.errors == {}
    # One container puts all of them aside: a chord is two tasks, and its body is none yet.
    ids = sorted(sent.ids["call"] if call["how"] == "chord" else [sent.ids["call"]])
    containers.put_aside = len(ids)
    code, _ = containers.run_here(queue=topology.QUEUE_LOW)
    assert code == 0
    dead = [broker.take(topology.DEAD_LETTER_QUEUE) for _ in ids]
    assert broker.is_empty(topology.DEAD_LETTER_QUEUE, *topology.BINDINGS)
    assert sorted(message.headers["id"] for message in dead) == ids
    for message in dead:
        assert reason in message.headers["x-autolabs-reason"]
        assert DELETE_LAB_POD in message.body.decode()
    assert sorted(run["task_id"] for run in database.ledger()) == ids
    assert set(database.outcomes()) == {"dead_lettered"}


def test_the_tasks_of_a_group_run_each_for_itself(
    celery_version: CeleryVersion, broker: Broker, containers: Containers, database: Database
) -> None:
    calls = {"group": {"how": "group", "names": [CLEANUP_TIMEOUT_LABS] * 2}}
    sent = celery_version.send(broker.url, calls)
    assert [containers.run_here(queue=topology.QUEUE_LOW)[0] for _ in range(2)] == [0, 0]
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
        code, process = containers.run_here(queue=topology.QUEUE_LOW)
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
    assert {m.headers["id"]: (m.delay_s, delay_ladder.plain_routing_key(m.routing_key)) for m in held} == {
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
    found = celery_version.send(broker.url, calls, result_backend=redis_url)
    assert (found.errors, found.warnings) == ({}, [])
    eventually(lambda: not create.is_ready(), what="a container that waits for another message")
    create.terminate()
    assert (cleanup.wait(), create.wait()) == (0, 0)
    assert (found.ids["done"]["state"], found.ids["done"]["result"]) == ("SUCCESS", {"deletes_published": 0})
    assert found.ids["failed"]["state"] == "FAILURE"
    assert "PERMANENT_INVALID_REQUEST" in found.ids["failed"]["exception"]
    assert found.ids["unknown"] == "PENDING"
    # Another process, later.
    celery_version.end_sender()
    again = {name: {"how": "result", "task_id": found.ids[name]["id"]} for name in ("done", "failed")}
    assert celery_version.send(broker.url, again, result_backend=redis_url).ids == {
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
    containers.run_here(queue=topology.QUEUE_LOW)
    calls = {"revoked": {"how": "result", "task_id": task.id}}
    found = celery_version.send(broker.url, calls, result_backend=redis_url).ids["revoked"]
    assert found["state"] == "REVOKED"
    assert "TaskRevokedError" in found["exception"]


def test_without_its_result_backend_a_task_is_sent_only_if_the_result_is_ignored(
    celery_version: CeleryVersion, broker: Broker
) -> None:
    calls = {"wanted": CLEANUP, "ignored": {**CREATE, "ignore_result": True}}
    sent = celery_version.send(broker.url, calls, result_backend="redis://127.0.0.1:1/0")
    # Celery's own twenty attempts would take twenty seconds.
    assert sent.took_s < SOON_S
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
    with full_queue(broker):
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
        sent = celery_version.send(proxy.through(broker.url), calls, confirm_timeout_s=1.5)
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
    ids = {broker.take(topology.QUEUE_NORMAL, timeout_s=HANG_S).headers["id"] for _ in range(3)}
    assert ids > set(sent.ids.values())


def test_a_plain_app_needs_only_exchange_and_routing_key(broker: Broker) -> None:
    app = Celery("plain", broker=broker.url, set_as_current=False)
    app.send_task(CREATE_LAB_POD, kwargs=create_kwargs(), exchange="autolabs.tasks", routing_key="lab.create")
    close_app(app)
    assert payload_of(broker.take(topology.QUEUE_NORMAL)) == CreateLabPod(**create_kwargs())
