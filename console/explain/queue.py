"""Look at queues without touching them: how many messages wait where a task may be, and who takes them."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker

from console.explain.facts import QueueSight
from dispatcher.broker import delay_ladder
from dispatcher.broker.connection import answers_within, connect
from dispatcher.broker.topology import DEAD_LETTER_QUEUE
from dispatcher.settings import BrokerSettings

#: Seconds for the connection and for the answer: an operator waits.
TIMEOUT_S = 3.0
_MAX_CHARS = 200


def look_at_queue(settings: BrokerSettings, queue: str) -> QueueSight:
    """Return what the broker says of a queue; a broker that is away is told, not raised."""
    # pika writes the whole story of a connection that failed; the sentence below says it.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    try:
        connection = connect(settings, name="autolabs-explain", timeout_s=TIMEOUT_S)
        try:
            with answers_within(connection, TIMEOUT_S):
                found = connection.channel().queue_declare(queue, passive=True).method
                levels = [delay_ladder.level_name(level) for level in range(delay_ladder.LEVELS)]
                delayed, dead = _count(connection, levels), _count(connection, [DEAD_LETTER_QUEUE])
        finally:
            if connection.is_open:
                connection.close()
    except AMQPError as exc:
        return QueueSight(queue=queue, problem=f"{exc!r}"[:_MAX_CHARS])
    return QueueSight(
        queue=queue,
        messages=found.message_count,
        consumers=found.consumer_count,
        delayed=delayed,
        dead=dead,
    )


def _count(connection: pika.BlockingConnection, queues: Iterable[str]) -> int | None:
    """Return how many messages wait in some queues; None if one is missing or must not be asked."""
    channel = connection.channel()
    try:
        found = [int(channel.queue_declare(queue, passive=True).method.message_count) for queue in queues]
    except ChannelClosedByBroker:
        return None
    return sum(found)
