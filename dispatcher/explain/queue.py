"""Look at a queue without touching it: how many messages wait, and who takes them."""

from __future__ import annotations

import logging

from pika.exceptions import AMQPError

from dispatcher.connection import answers_within, connect
from dispatcher.explain.facts import QueueSight
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
        finally:
            if connection.is_open:
                connection.close()
    except AMQPError as exc:
        return QueueSight(queue=queue, problem=f"{exc!r}"[:_MAX_CHARS])
    return QueueSight(queue=queue, messages=found.message_count, consumers=found.consumer_count)
