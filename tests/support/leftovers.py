"""What a test that failed may leave in a vhost that the next one uses."""

from __future__ import annotations

from dispatcher import topology
from tests.support.rabbitmq import LADDER, Broker

_QUEUES = (*topology.BINDINGS, topology.DEAD_LETTER_QUEUE, *LADDER)


def empty_queues(broker: Broker) -> bool:
    """Remove all messages that wait, on the ladder too; tell whether there were any."""
    channel = broker.channel()
    try:
        found = [name for name in _QUEUES if channel.queue_declare(name, passive=True).method.message_count]
        for name in found:
            channel.queue_purge(name)
    finally:
        channel.connection.close()
    return bool(found)
