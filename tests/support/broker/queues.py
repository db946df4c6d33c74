"""Queues beside those of the topology, and whole queues over one connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dispatcher.broker import topology
from tests.support.broker.rabbitmq import Broker, Message


@contextmanager
def queue_beside(
    broker: Broker, name: str, routing_key: str, exchange: str = topology.TASKS_EXCHANGE, **arguments: Any
) -> Iterator[str]:
    """A queue that the topology does not have, for as long as the block lasts."""
    channel = broker.channel()
    given = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
    channel.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum", **given})
    channel.queue_bind(name, exchange, routing_key)
    try:
        yield name
    finally:
        broker.channel().queue_delete(name)


@contextmanager
def full_queue(broker: Broker) -> Iterator[str]:
    """A queue of creates that refuses them, after a few more than the one that it may have."""
    with queue_beside(broker, "full", "lab.create", max_length=1, overflow="reject-publish") as name:
        yield name


def take_all(broker: Broker, queue: str) -> list[Message]:
    """Remove and return the messages that are in a queue, in their order."""
    channel = broker.channel()
    found: list[Message] = []
    for _ in range(broker.depth(queue)):
        method, sent, body = channel.basic_get(queue, auto_ack=True)
        if method is None or sent is None or body is None:
            raise AssertionError(f"{queue} had more messages than the {len(found)} that came")
        found.append(Message(body, sent, method.routing_key, method.redelivered))
    channel.connection.close()
    return found
