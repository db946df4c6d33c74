"""A pile of messages that are no tasks, and what waits behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pika
import psycopg2
import pytest

import jobs.container.consumer
from dispatcher.broker import topology
from dispatcher.broker.connection import connect
from dispatcher.tasks import CLEANUP_TIMEOUT_LABS
from jobs.container.consumer import Consumer, Delivery
from tests.integration.jobs.container.test_poison import POISON
from tests.support.broker.queues import take_all
from tests.support.broker.rabbitmq import Broker
from tests.support.containers.container import Containers
from tests.support.database.postgres import Database
from tests.support.waiting import eventually, eventually_equal

#: Messages of each kind.
COPIES = 10


def pile_up(broker: Broker, *, copies: int) -> list[bytes]:
    channel = broker.channel()
    channel.confirm_delivery()
    sent = []
    for body, headers, properties, _ in list(POISON.values()) * copies:
        how = {"content_type": "application/json", **properties}
        channel.basic_publish("", topology.QUEUE_LOW, body, pika.BasicProperties(headers=headers, **how))
        sent.append(body)
    channel.connection.close()
    return sent


def test_one_container_puts_a_pile_aside_and_performs_the_task_behind_it(
    containers: Containers, broker: Broker, database: Database
) -> None:
    sent = pile_up(broker, copies=COPIES)
    task_id = broker.publish_task(name=CLEANUP_TIMEOUT_LABS, kwargs={})
    code, container = containers.run(queue=topology.QUEUE_LOW, CLAIM_WAIT_S=60)
    assert code == 0
    assert broker.depth(topology.DEAD_LETTER_QUEUE) == len(sent) >= 200
    kept = Counter(message.body for message in take_all(broker, topology.DEAD_LETTER_QUEUE))
    assert kept == Counter(sent)
    (run,) = (row for row in database.ledger() if row["task_id"] == task_id)
    assert run["outcome"] == "succeeded"
    lines = container.lines()
    (claimed,) = (line for line in lines if line.get("action") == "claimed" and line["task_id"] == task_id)
    print(f"{len(sent)} messages put aside, the task behind them claimed after {claimed['waited_s']} s")
    assert broker.is_empty()


def test_after_a_task_nothing_else_is_taken(containers: Containers, broker: Broker) -> None:
    broker.publish(topology.QUEUE_LOW, b"no task")
    for _ in range(2):
        broker.publish_task(name=CLEANUP_TIMEOUT_LABS, kwargs={})
    containers.put_aside = 2  # which the first task keeps it from
    code, container = containers.run_here(queue=topology.QUEUE_LOW)
    assert code == 0
    assert broker.depth(topology.QUEUE_LOW) == 1
    assert container.actions().count("done") == 1


def test_a_container_is_not_ready_for_good_after_what_is_no_task(
    containers: Containers, broker: Broker
) -> None:
    broker.publish(topology.QUEUE_LOW, b"no task")
    process = containers.start(queue=topology.QUEUE_LOW, CLAIM_WAIT_S=30)
    process.wait_for_action("dead_lettered")
    eventually(lambda: not process.is_ready(), what="readiness taken back")
    assert process.popen.poll() is None
    broker.publish_task(name=CLEANUP_TIMEOUT_LABS, kwargs={})
    assert process.wait() == 0
    assert process.actions()[-1] == "done"


def test_a_pile_is_out_of_sight_while_it_is_put_aside(
    containers: Containers, broker: Broker, database: Database
) -> None:
    broker.publish(topology.QUEUE_LOW, b"nobody asks for this one's result")
    channel = broker.channel()
    for number in range(50):
        sent = pika.BasicProperties(headers={"task": "x", "id": f"p-{number}"}, delivery_mode=2)
        channel.basic_publish("", topology.QUEUE_LOW, b"no task", sent)
    eventually_equal(lambda: broker.depth(topology.QUEUE_LOW), 51)
    blocker = psycopg2.connect(database.url)
    try:
        # Shorter than the lock_timeout of a container: it waits for the ledger, and nothing fails.
        blocker.cursor().execute("LOCK TABLE task_ledger IN EXCLUSIVE MODE")
        process = containers.start(queue=topology.QUEUE_LOW, CLAIM_WAIT_S=2)
        eventually(
            lambda: broker.depth(topology.QUEUE_LOW) == 0 and broker.depth(topology.DEAD_LETTER_QUEUE) <= 2,
            what="an empty queue for KEDA, with nearly all of the pile in the container's hands",
        )
    finally:
        blocker.close()
    assert process.wait() == 0
    assert broker.depth(topology.DEAD_LETTER_QUEUE) == 51
    assert broker.is_empty()


@pytest.fixture
def consumer(broker: Broker) -> Iterator[Consumer]:
    connection = connect(broker.settings, name="test-pile")
    yield Consumer(connection, topology.QUEUE_LOW)
    if connection.is_open:
        connection.close()


def put(broker: Broker, *bodies: bytes) -> None:
    for body in bodies:
        broker.publish(topology.QUEUE_LOW, body)


def is_task(delivery: Delivery) -> bool:
    return delivery.body == b"task"


def claimed(consumer: Consumer) -> list[bytes]:
    return [delivery.body for delivery in consumer.claim_pile(is_task)]


def test_a_pile_ends_with_the_first_task(broker: Broker, consumer: Consumer) -> None:
    put(broker, b"1", b"2", b"task", b"3", b"task")
    assert claimed(consumer) == [b"1", b"2", b"task"]
    assert broker.depth(topology.QUEUE_LOW) == 2


@pytest.mark.parametrize(("bound", "value"), [("PILE", 3), ("PILE_BYTES", 25)])
def test_a_pile_is_bounded(
    broker: Broker, consumer: Consumer, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(jobs.container.consumer, bound, value)
    put(broker, *[b"ten bytes."] * 5)
    assert len(claimed(consumer)) == 3
    assert broker.depth(topology.QUEUE_LOW) == 2


def test_nothing_is_held_beside_a_message_that_came_back(broker: Broker, consumer: Consumer) -> None:
    put(broker, b"1", b"2", b"3", b"task")
    assert len(claimed(consumer)) == 4
    consumer.give_back_all()
    again = Consumer(connect(broker.settings, name="test-again"), topology.QUEUE_LOW)
    # Which of them killed the container nobody knows: each has to prove itself alone.
    assert [claimed(again) for _ in range(4)] == [[b"1"], [b"2"], [b"3"], [b"task"]]
    again.give_back_all()
    assert broker.depth(topology.QUEUE_LOW) == 4
