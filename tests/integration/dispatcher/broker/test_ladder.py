"""The delay ladder on a real broker: Celery's own declaration fits, and messages arrive on time."""

from __future__ import annotations

import time
from typing import Any

import pika
import pytest
from kombu import Connection, Exchange, Queue, binding
from kombu.transport.native_delayed_delivery import (
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
)

from dispatcher import tasks
from dispatcher.broker import delay_ladder, topology
from tests.support.broker.rabbitmq import LADDER, Broker
from tests.support.factories import make_wire
from tests.support.waiting import HANG_S


def declare_as_celery(broker: Broker) -> None:
    """Declare the ladder and bind our queues as the start of a Celery worker does."""
    exchange = Exchange(topology.TASKS_EXCHANGE, type="topic")
    with Connection(broker.url) as connection:
        declare_native_delayed_delivery_exchanges_and_queues(connection, "quorum")
        for name, routing_keys in topology.BINDINGS.items():
            bindings = [binding(exchange, routing_key=key) for key in routing_keys]
            queue = Queue(name, bindings=bindings, queue_arguments=topology.task_queue_arguments())
            queue(connection.default_channel).declare()
            bind_queue_to_native_delayed_delivery_exchange(connection, queue)


def on_the_ladder(broker: Broker) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the exchanges, queues and bindings that the delay consists of, as the broker lists them."""
    names = {*LADDER, delay_ladder.DELIVERY_EXCHANGE}
    listed = {what: broker.api.call("GET", f"/{what}/{broker.vhost}") for what in ("exchanges", "queues")}
    exchanges = [(e["name"], e["type"], e["durable"], e["arguments"]) for e in listed["exchanges"]]
    queues = [(q["name"], q["durable"], q["arguments"]) for q in listed["queues"]]
    bindings = [
        (b["source"], b["destination"], b["destination_type"], b["routing_key"])
        for b in broker.api.call("GET", f"/bindings/{broker.vhost}")
        if b["source"] in names
    ]
    return (
        sorted(e for e in exchanges if e[0] in names),
        sorted((q for q in queues if q[0] in names), key=str),
        sorted(bindings),
    )


def test_the_ladder_is_what_celery_declares(bare_broker: Broker) -> None:
    declare_as_celery(bare_broker)
    theirs = on_the_ladder(bare_broker)
    bare_broker.declare()
    assert on_the_ladder(bare_broker) == theirs


def test_celery_may_declare_it_again(broker: Broker) -> None:
    ours = on_the_ladder(broker)
    declare_as_celery(broker)
    assert on_the_ladder(broker) == ours


@pytest.mark.parametrize(("delay_s", "held_s"), [(1, 1), (2.2, 3)])
def test_a_message_arrives_once_after_its_delay_as_it_was(
    broker: Broker, delay_s: float, held_s: int
) -> None:
    body, headers = make_wire()
    sent = pika.BasicProperties(
        headers=headers, content_type="application/json", correlation_id="c", delivery_mode=2, priority=3
    )
    channel = broker.channel()
    channel.confirm_delivery()
    started = time.monotonic()
    routing_key = delay_ladder.delayed_routing_key(delay_s, "lab.delete")
    channel.basic_publish(delay_ladder.ENTRY_EXCHANGE, routing_key, body, sent, mandatory=True)
    message = broker.take(topology.QUEUE_HIGH, timeout_s=HANG_S)
    assert time.monotonic() - started >= held_s
    # Each level doubles the seconds of the one below.
    held_on = {death["queue"] for death in message.headers["x-death"]}
    assert held_on == {
        delay_ladder.level_name(level) for level in range(delay_ladder.LEVELS) if held_s >> level & 1
    }
    assert message.body == body
    assert {name: message.headers[name] for name in headers} == headers
    assert (message.properties.correlation_id, message.properties.priority) == ("c", 3)
    assert (message.properties.content_type, message.properties.expiration) == ("application/json", None)
    assert delay_ladder.plain_routing_key(message.routing_key) == "lab.delete"
    assert broker.is_empty(*topology.BINDINGS, topology.DEAD_LETTER_QUEUE)
    assert broker.delayed() == 0


def test_the_longest_delay_is_held_on_the_highest_level(broker: Broker) -> None:
    routing_key = delay_ladder.delayed_routing_key(tasks.MAX_DELAY_S, "lab.create")
    broker.channel().basic_publish(delay_ladder.ENTRY_EXCHANGE, routing_key, b"x")
    assert broker.take(delay_ladder.ENTRY_EXCHANGE).delay_s == tasks.MAX_DELAY_S


def test_two_delays_do_not_wait_for_each_other(broker: Broker) -> None:
    channel = broker.channel()
    for delay_s, body in ((5, b"long"), (1, b"short")):
        channel.basic_publish(
            delay_ladder.ENTRY_EXCHANGE, delay_ladder.delayed_routing_key(delay_s, "lab.create"), body
        )
    assert broker.take(topology.QUEUE_NORMAL).body == b"short"
    assert broker.take(topology.QUEUE_NORMAL, timeout_s=HANG_S).body == b"long"
