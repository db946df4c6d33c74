"""A walk through a queue costs no message its life, its place or its count of deliveries."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika.data
import pytest

from dispatcher.broker import topology
from dispatcher.broker.publisher import Publisher
from dispatcher.broker.topology import EARLIER_DELIVERIES
from dispatcher.interrupts import Interrupted, stop_on_signals
from dispatcher.message.envelope import encode
from dispatcher.settings import BrokerSettings
from jobs.verify.queue_walk import walk
from jobs.verify.queues import BrokerAway, Queues
from tests.support.broker.queues import take_all
from tests.support.broker.rabbitmq import Broker
from tests.support.containers.container import ROOT, Containers
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_task
from tests.support.labs.verifying import age
from tests.support.waiting import HANG_S, eventually_equal

NORMAL = topology.QUEUE_NORMAL


@contextmanager
def opened(broker: Broker, url: str = "", **options: Any) -> Iterator[Queues]:
    queues = Queues(BrokerSettings(url or broker.url), **options)
    try:
        yield queues
    finally:
        queues.close()


def walk_all(broker: Broker, queue: str = NORMAL, *, url: str = "") -> list[str]:
    """Return what could not be looked at."""
    gaps: list[str] = []
    with opened(broker, url) as queues:
        list(walk(queues, queue, gap=gaps.append))
    return gaps


def publish(publisher: Publisher, count: int) -> list[str]:
    tasks = [make_task(kwargs=create_kwargs(lab_instance_id=lab)) for lab in range(1, count + 1)]
    assert publisher.publish_tasks(tasks) == [None] * count
    return [task.id for task in tasks]


def die_over_the_next(broker: Broker) -> None:
    """Take a message as a container does that is killed."""
    channel = broker.channel()
    method, _, _ = channel.basic_get(NORMAL)
    assert method is not None
    channel.connection.close()


def test_who_may_not_write_takes_nothing(broker: Broker, publisher: Publisher) -> None:
    ids = publish(publisher, 3)
    url = broker.url_of_user(configure="^$", write="^$", read="^celery")
    for _ in range(10):
        with pytest.raises(BrokerAway, match="nothing was taken"):
            walk_all(broker, url=url)
    left = take_all(broker, NORMAL)
    assert [one.headers["id"] for one in left] == ids
    assert not any(one.redelivered for one in left)
    assert broker.is_empty(topology.DEAD_LETTER_QUEUE)


def test_what_was_sent_to_a_queue_by_its_name_survives_looks_of_the_jobs_user(broker: Broker) -> None:
    ids = [broker.publish_task(kwargs=create_kwargs(lab_instance_id=lab)) for lab in (1, 2)]
    url = broker.url_of_user(configure="^$", write=r"^autolabs\.", read="^celery")
    assert [walk_all(broker, url=url) for _ in range(8)] == [[]] * 8
    left = take_all(broker, NORMAL)
    assert [one.headers["id"] for one in left] == ids
    assert not any(one.redelivered for one in left)


def test_a_queue_without_its_bindings_is_left_as_it_is(broker: Broker, publisher: Publisher) -> None:
    ids = publish(publisher, 60)
    broker.channel().queue_unbind(NORMAL, topology.TASKS_EXCHANGE, topology.binding_key("lab.create"))
    assert walk_all(broker) == []
    assert [one.headers["id"] for one in take_all(broker, NORMAL)] == ids


def test_a_queue_keeps_its_order_while_containers_take_messages(broker: Broker, publisher: Publisher) -> None:
    ids = publish(publisher, 300)
    channel = broker.channel()
    taken = []
    with opened(broker) as queues:
        for at, _ in enumerate(walk(queues, NORMAL, gap=print)):
            if at in (60, 120, 180):
                for _ in range(10):
                    _, properties, _ = channel.basic_get(NORMAL, auto_ack=True)
                    taken.append(properties.headers["id"])
    eventually_equal(lambda: broker.depth(NORMAL), 270)
    left = take_all(broker, NORMAL)
    assert [one.headers["id"] for one in left] == [one for one in ids if one not in taken]
    # Our own first copy, which came back: it is the next that a container takes.
    assert [one.redelivered for one in left] == [True] + [False] * 269


def test_poison_dies_beside_looks(broker: Broker, publisher: Publisher) -> None:
    (task_id,) = publish(publisher, 1)
    for _ in range(topology.DELIVERY_LIMIT + 1):
        die_over_the_next(broker)
        eventually_equal(lambda: broker.depth(NORMAL), 1)
        walk_all(broker)
    # As after a death that the broker saw itself: one for people, one for a container.
    assert broker.is_empty(NORMAL)
    dead, copy = broker.take(topology.DEAD_LETTER_QUEUE), broker.take(topology.QUEUE_LOW)
    assert (dead.headers["id"], copy.headers["id"]) == (task_id, task_id)
    assert dead.headers["x-death"][0]["reason"] == copy.headers["x-last-death-reason"] == "delivery_limit"
    assert copy.headers["x-last-death-queue"] == NORMAL
    assert EARLIER_DELIVERIES not in copy.headers


def test_a_container_ends_a_worn_out_message(
    broker: Broker, database: Database, containers: Containers
) -> None:
    lab = database.add_lab()
    age(database)
    body, sent = encode(make_task(kwargs=create_kwargs(lab_instance_id=lab)))
    sent["headers"] = sent["headers"] | {EARLIER_DELIVERIES: topology.DELIVERY_LIMIT + 1}
    sent.pop("delivery_mode")
    broker.publish(NORMAL, body, **sent)
    assert containers.run_here(queue=NORMAL)[0] == 0
    (run,) = database.ledger()
    assert (database.lab(lab)["status"], run["details"]["cause"]) == ("FAILED", "container_crashed")


def test_further_routing_keys_double_nothing(broker: Broker) -> None:
    body, sent = encode(make_task())
    sent.pop("delivery_mode")
    sent["headers"] = sent["headers"] | {"CC": [topology.QUEUE_LOW], "BCC": [topology.QUEUE_HIGH]}
    broker.publish(NORMAL, body, **sent)
    for _ in range(3):
        for queue in topology.BINDINGS:
            walk_all(broker, queue)
    assert [broker.depth(queue) for queue in topology.BINDINGS] == [1, 1, 1]


class _Time(int):
    """A time that no Python has."""


def test_headers_that_cannot_be_read_stop_no_look(
    broker: Broker, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = pika.data.encode_value

    def encode_value(pieces: list[bytes], value: object) -> int:
        if not isinstance(value, _Time):
            return int(original(pieces, value))
        pieces.append(b"T" + struct.pack(">Q", 10**14))
        return 9

    monkeypatch.setattr(pika.data, "encode_value", encode_value)
    body, sent = encode(make_task())
    sent.pop("delivery_mode")
    broker.publish(NORMAL, body, **{**sent, "headers": sent["headers"] | {"odd": {"when": [_Time()]}}})
    ids = publish(publisher, 3)
    gaps: list[str] = []
    with opened(broker) as queues:
        assert len(list(walk(queues, NORMAL, gap=gaps.append))) == 4
    assert gaps == [f"{NORMAL}: 1 message cannot be published again, and went back"]
    eventually_equal(lambda: broker.depth(NORMAL), 4)
    with opened(broker) as queues:
        seen = [one.task_id for one in walk(queues, NORMAL, gap=gaps.append)]
    assert seen[1:] == ids


def test_an_interrupted_walk_goes_round_first(broker: Broker, publisher: Publisher) -> None:
    ids = publish(publisher, 120)
    with stop_on_signals() as stop, opened(broker, stop=stop) as queues:
        messages = walk(queues, NORMAL, gap=print)
        next(messages)
        os.kill(os.getpid(), signal.SIGINT)
        list(messages)
        with pytest.raises(Interrupted):
            stop.check()
    assert [one.headers["id"] for one in take_all(broker, NORMAL)] == ids


def test_a_long_walk_is_interrupted_between_two_batches(
    broker: Broker, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.interrupts.PATIENCE_S", 0.0)
    publish(publisher, 120)
    with stop_on_signals() as stop, opened(broker, stop=stop) as queues:
        messages = walk(queues, NORMAL, gap=print)
        next(messages)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            list(messages)
    left = take_all(broker, NORMAL)
    assert len({one.headers["id"] for one in left}) == len(left) == 120
    assert not any(one.redelivered for one in left)


#: Ctrl-C as soon as the first message is in hand; the cluster would be looked at after the queues.
_INTERRUPTED = """
import os, signal, sys
import console.access, jobs.verify.queue_walk
from console.__main__ import main
class Cluster:
    server = "https://nowhere"
console.access.open_cluster = lambda environ: Cluster()
read = jobs.verify.queue_walk.read
def interrupted(*message):
    jobs.verify.queue_walk.read = read
    os.kill(os.getpid(), signal.SIGINT)
    return read(*message)
jobs.verify.queue_walk.read = interrupted
sys.exit(main(["verify"]))
"""


def test_ctrl_c_ends_the_command_with_a_sentence(
    broker: Broker, database: Database, publisher: Publisher
) -> None:
    ids = publish(publisher, 120)
    environ = os.environ | {"AMQP_URL": broker.url, "DATABASE_URL": database.url}
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=2 * HANG_S,
        check=False,
    )
    said = "autolabs: interrupted; what was repaired is in the ledger, no message is lost\n"
    assert (done.returncode, done.stderr) == (130, said)
    assert [one.headers["id"] for one in take_all(broker, NORMAL)] == ids
