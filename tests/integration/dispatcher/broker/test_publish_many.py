"""Many tasks at a time: every one is confirmed, or reported with the reason; a lost connection loses none."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pytest

from dispatcher import NotConfirmed, Unencodable, Unroutable
from dispatcher.broker import topology
from dispatcher.broker.batch import WINDOW
from dispatcher.broker.publisher import Publisher
from dispatcher.message.body import MAX_BODY_BYTES
from dispatcher.message.envelope import TaskMessage
from dispatcher.settings import BrokerSettings
from dispatcher.tasks import DELETE_LAB_POD
from tests.support.broker.queues import full_queue
from tests.support.broker.rabbitmq import Broker
from tests.support.broker.tcp_proxy import TcpProxy
from tests.support.factories import make_task
from tests.support.waiting import HANG_S, eventually, eventually_equal

MANY = 3 * WINDOW + 17


@pytest.fixture
def through(proxy: TcpProxy, broker: Broker) -> Iterator[Publisher]:
    publisher = Publisher(BrokerSettings(proxy.through(broker.url), publish_timeout_s=HANG_S))
    yield publisher
    publisher.close()


def make_tasks(count: int) -> list[TaskMessage]:
    return [make_task(id=f"task-{number}") for number in range(count)]


def ids_in(broker: Broker, queue: str) -> Counter[str]:
    """Return how often each task id is in the queue, and empty it."""
    found: Counter[str] = Counter()
    channel = broker.channel()
    while left := channel.queue_declare(queue, passive=True).method.message_count:
        # Not one request for each.
        for _, properties, _ in channel.consume(queue, auto_ack=True, inactivity_timeout=HANG_S):
            assert properties is not None, f"{left} more were to come"
            found[properties.correlation_id or ""] += 1
            left -= 1
            if not left:
                break
        channel.cancel()
    channel.connection.close()
    return found


def test_many_tasks_arrive_once_each_and_in_order(broker: Broker, publisher: Publisher) -> None:
    tasks = make_tasks(MANY)
    assert publisher.publish_tasks(tasks) == [None] * MANY
    found = ids_in(broker, topology.QUEUE_NORMAL)
    assert list(found) == [task.id for task in tasks]
    assert set(found.values()) == {1}


@pytest.mark.parametrize("cuts", [1, 4])
def test_no_task_is_lost_when_the_connection_is_cut(
    broker: Broker, proxy: TcpProxy, through: Publisher, cuts: int
) -> None:
    tasks = make_tasks(MANY)
    marks = [f'"task-{(n + 1) * MANY // (cuts + 1)}"' for n in range(cuts)]
    pending = [mark.strip('"').encode() for mark in marks]

    def in_the_middle(data: bytes) -> bool:
        # Cut before the broker's confirms are passed on: what was sent is queued, and not known to be.
        if pending and pending[0] in data:
            pending.pop(0)
            return True
        return False

    proxy.swallow_answer_to = in_the_middle
    assert through.publish_tasks(tasks) == [None] * MANY
    assert pending == []
    found = ids_in(broker, topology.QUEUE_NORMAL)
    assert set(found) == {task.id for task in tasks}
    print(f"{MANY} tasks, {cuts} cuts: {sum(found.values()) - MANY} arrived twice, none was lost")


def test_a_network_that_stops_is_reported_per_task(broker: Broker, proxy: TcpProxy) -> None:
    publisher = Publisher(BrokerSettings(proxy.through(broker.url), publish_timeout_s=2))
    publisher.publish_task(make_task())
    proxy.freeze()
    errors = publisher.publish_tasks(make_tasks(50))
    assert all(isinstance(error, NotConfirmed) for error in errors)
    assert "task task-7 was not confirmed by the broker within 2 s" in str(errors[7])
    assert errors[7] is not None
    assert errors[7].__cause__ is not None
    publisher.close()


def test_only_tasks_without_a_queue_are_unroutable(broker: Broker, publisher: Publisher) -> None:
    broker.channel().queue_delete(topology.QUEUE_HIGH)
    tasks = [
        make_task(id=f"task-{n}", **({"name": DELETE_LAB_POD, "kwargs": {}} if n % 3 == 0 else {}))
        for n in range(300)
    ]
    errors = publisher.publish_tasks(tasks)
    assert {n for n, error in enumerate(errors) if error} == set(range(0, 300, 3))
    assert all(isinstance(error, Unroutable) for error in errors if error)
    assert "no queue is bound to exchange 'autolabs.tasks' with routing key 'lab.delete'" in str(errors[3])
    assert broker.depth(topology.QUEUE_NORMAL) == 200


def test_a_missing_exchange_is_reported_for_every_task(bare_broker: Broker) -> None:
    publisher = Publisher(bare_broker.settings)
    errors = publisher.publish_tasks(make_tasks(2 * WINDOW))
    assert all(isinstance(error, Unroutable) for error in errors)
    assert "no exchange 'autolabs.tasks'" in str(errors[-1])
    publisher.close()


def test_a_task_that_json_cannot_say_does_not_stop_the_others(broker: Broker, publisher: Publisher) -> None:
    tasks = make_tasks(10)
    tasks[4] = make_task(id="odd", kwargs={"x": object()})
    errors = publisher.publish_tasks(tasks)
    assert [type(error) for error in errors if error] == [Unencodable]
    assert "task odd cannot be written as JSON" in str(errors[4])
    assert broker.depth(topology.QUEUE_NORMAL) == 9


def test_what_a_full_queue_refuses_is_reported(broker: Broker) -> None:
    publisher = Publisher(BrokerSettings(broker.url, publish_timeout_s=3))

    def refused() -> list[object]:
        return [error for error in publisher.publish_tasks(make_tasks(200)) if error]

    with full_queue(broker):
        # How many more than its limit a queue takes depends on when its news reaches the channel.
        errors = eventually(refused, 2 * HANG_S, what="a queue that refuses")
    assert all("queue is full or not available" in str(error) for error in errors)
    publisher.close()


def test_threads_that_publish_many_at_once_do_not_mix(broker: Broker, publisher: Publisher) -> None:
    errors: dict[int, list[object]] = {}

    def publish(thread: int) -> None:
        tasks = [make_task(id=f"{thread}-{n}") for n in range(500)]
        errors[thread] = [*publisher.publish_tasks(tasks, timeout_s=60)]

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * HANG_S)
    assert errors == {n: [None] * 500 for n in range(4)}
    eventually_equal(lambda: broker.depth(topology.QUEUE_NORMAL), 2000)


def test_a_task_that_no_container_would_read_is_not_sent(broker: Broker, publisher: Publisher) -> None:
    errors = publisher.publish_tasks([make_task(kwargs={"x": "y" * MAX_BODY_BYTES}), make_task()])
    assert [type(error) for error in errors] == [Unencodable, type(None)]
    assert broker.depth(topology.QUEUE_NORMAL) == 1


def test_a_property_that_the_broker_refuses_is_told_at_once(broker: Broker, publisher: Publisher) -> None:
    with pytest.raises(Unroutable, match="PRECONDITION_FAILED"):
        publisher.publish(topology.TASKS_EXCHANGE, "lab.create", b"{}", {"expiration": "9" * 20})
    publisher.publish_task(make_task(expires=datetime.now(timezone.utc) + timedelta(days=90 * 365)))
    assert broker.depth(topology.QUEUE_NORMAL) == 1


def test_unroutable_is_said_only_of_tasks_that_are_not_queued(broker: Broker, proxy: TcpProxy) -> None:
    publisher = Publisher(BrokerSettings(proxy.through(broker.url), publish_timeout_s=5))
    tasks = make_tasks(6 * WINDOW)
    deleted: list[bool] = []

    def delete_in_the_middle(data: bytes) -> bool:
        if b"task-2500" in data and not deleted:
            deleted.append(True)
            broker.channel().exchange_delete(topology.TASKS_EXCHANGE)
        return False

    proxy.swallow_answer_to = delete_in_the_middle
    errors = publisher.publish_tasks(tasks)
    publisher.close()
    assert deleted
    queued = ids_in(broker, topology.QUEUE_NORMAL)
    told = {task.id: error for task, error in zip(tasks, errors, strict=True)}
    assert {task_id for task_id, error in told.items() if error is None} <= set(queued)
    assert not [
        task_id for task_id, error in told.items() if isinstance(error, Unroutable) and queued[task_id]
    ]
    kinds = Counter(type(error).__name__ for error in errors)
    print(f"{kinds}; {len(queued)} queued")
    assert kinds["Unroutable"] > WINDOW


def test_a_task_that_cannot_be_written_is_told_among_those_without_an_exchange(bare_broker: Broker) -> None:
    publisher = Publisher(bare_broker.settings)
    tasks = make_tasks(WINDOW + 500)
    tasks[-1] = make_task(id="odd", kwargs={"x": object()})
    errors = publisher.publish_tasks(tasks)
    assert isinstance(errors[-1], Unencodable)
    assert all(isinstance(error, Unroutable) for error in errors[:-1])
    publisher.close()


def test_without_poll_select_does(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    # As with the green threads of eventlet.
    monkeypatch.delattr(select, "poll")
    publisher = Publisher(broker.settings)
    assert publisher.publish_tasks(make_tasks(2 * WINDOW)) == [None] * 2 * WINDOW
    publisher.close()


def test_the_threads_of_a_forked_child_share_one_new_connection(broker: Broker, publisher: Publisher) -> None:
    publisher.publish_task(make_task())
    child = os.fork()
    if child == 0:  # the child must not run any of pytest's clean-up
        errors: list[object] = []
        start = threading.Barrier(8)

        def publish(number: int) -> None:
            start.wait()
            errors.extend(publisher.publish_tasks([make_task(id=f"child-{number}")], timeout_s=HANG_S))

        sys.setswitchinterval(1e-6)
        threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG_S)
        os._exit(0 if errors == [None] * 8 else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    publisher.publish_task(make_task())
    assert broker.depth(topology.QUEUE_NORMAL) == 10
