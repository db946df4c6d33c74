"""What becomes of publishes while a broker of the module's own is killed, or has no memory left."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from dispatcher import CreateLabPod, Dispatcher, NotConfirmed, TaskRequest
from dispatcher.broker import topology
from tests.support.broker.broker_pod import BrokerPod
from tests.support.broker.rabbitmq import Broker
from tests.support.factories import create_kwargs
from tests.support.labs.own_labs import HANGS_S
from tests.support.waiting import eventually

MANY = 20_000
#: Seconds that a publish is given here, and those that it has by default: who took more than the first and
#: less than the second heeded the first, on however slow a machine.
GIVEN_S, DEFAULT_S = 3.0, 60.0

pytestmark = [
    pytest.mark.timeout(4 * HANGS_S),
    pytest.mark.skipif(
        os.environ.get("CLUSTER") == "existing", reason="the broker of another cluster is not ours to copy"
    ),
]


@pytest.fixture(scope="module")
def pod() -> Iterator[BrokerPod]:
    name = f"rabbitmq-test-{uuid.uuid4().hex[:6]}"
    pod = BrokerPod(name, os.environ["AMQP_URL"], os.environ["RABBITMQ_API_URL"])
    yield pod
    pod.remove()


@pytest.fixture
def broker(pod: BrokerPod) -> Iterator[Broker]:
    """A vhost with the topology."""
    # A test that failed may have left it killed.
    pod.wait_ready()
    broker = Broker.create(pod.amqp_url, pod.api_url)
    broker.declare()
    yield broker
    broker.remove()


def ids_in(broker: Broker, queue: str) -> Counter[str]:
    """Take all messages out of a queue, also from a broker that pauses in between."""
    found: Counter[str] = Counter()
    channel = broker.channel()
    for method, properties, _ in channel.consume(queue, auto_ack=True, inactivity_timeout=3):
        if method is None or properties is None:
            if broker.depth(queue):
                continue
            return found
        found[properties.correlation_id or ""] += 1
    return found


def test_a_broker_that_is_killed_loses_none_of_20000_tasks(pod: BrokerPod, broker: Broker) -> None:
    requests = [
        TaskRequest(CreateLabPod(**create_kwargs(lab_instance_id=n + 1)), task_id=f"task-{n}")
        for n in range(MANY)
    ]

    def kill_in_the_middle() -> None:
        eventually(lambda: broker.depth(topology.QUEUE_NORMAL) > MANY // 10, HANGS_S)
        pod.kill()

    killer = threading.Thread(target=kill_in_the_middle)
    with Dispatcher(broker.url) as dispatcher:
        killer.start()
        started = time.monotonic()
        results = dispatcher.send_many(requests, timeout=HANGS_S)
        took_s = time.monotonic() - started
        killer.join(HANGS_S)
    assert [result.error for result in results if not result.ok] == []
    pod.wait_ready()
    found = ids_in(broker, topology.QUEUE_NORMAL)
    missing = {request.task_id for request in requests} - found.keys()
    again = sum(found.values()) - len(found)
    print(f"{MANY} tasks confirmed in {took_s:.1f} s through a kill -9 of the broker; {again} arrived twice")
    assert missing == set()
    assert len(found) == MANY


def test_a_broker_without_memory_is_waited_for_and_named(pod: BrokerPod, broker: Broker) -> None:
    with Dispatcher(settings=replace(broker.settings, publish_timeout_s=DEFAULT_S)) as dispatcher:
        dispatcher.create_lab(**create_kwargs())
        pod.limit_memory("1MB")
        try:
            started = time.monotonic()
            with pytest.raises(NotConfirmed, match=r"takes no messages: .*memory"):
                dispatcher.send_task("celery_workers.create_lab_pod", kwargs=create_kwargs(), timeout=GIVEN_S)
            one_s = time.monotonic() - started
            results = dispatcher.send_many([CreateLabPod(**create_kwargs())] * 50, timeout=GIVEN_S)
            many_s = time.monotonic() - started - one_s
            assert [type(result.error) for result in results] == [NotConfirmed] * 50
        finally:
            pod.limit_memory("600MB")
        dispatcher.create_lab(**create_kwargs(), task_id="after")
    print(f"given up after {one_s:.1f} s, 50 tasks together after {many_s:.1f} s")
    assert one_s < DEFAULT_S
    assert many_s < DEFAULT_S, "they were waited for one after the other"
    found = ids_in(broker, topology.QUEUE_NORMAL)
    assert found["after"] == 1
    # What was sent to the full broker may come late; a new connection for each try would multiply it.
    assert max(found.values()) == 1
