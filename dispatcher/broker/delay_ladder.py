"""Declare Celery's delay ladder, the queues on which a retry waits, for any whole number of seconds.

Level n is an exchange and a queue whose messages stay 2**n seconds. A delay is written in front of
the routing key, one binary digit per level from the highest down: a 1 leads into the level's queue,
a 0 past it, and behind level 0 the key still leads to the task's queue. Names and arguments are
those of kombu/transport/native_delayed_delivery.py (5.5 to 5.7): Celery workers declare the same
ladder, and other arguments would be refused with 406.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from dispatcher.tasks import MAX_DELAY_S

if TYPE_CHECKING:
    from pika.adapters.blocking_connection import BlockingChannel

LEVELS = MAX_DELAY_S.bit_length()
#: Where a message that has to wait is published; Celery 5.5 and later does so too.
ENTRY_EXCHANGE = f"celery_delayed_{LEVELS - 1}"
#: Where it arrives after the wait, the delay still in front of its routing key.
DELIVERY_EXCHANGE = "celery_delayed_delivery"

_PREFIX = re.compile(rf"(?:[01]\.){{{LEVELS}}}")


def level_name(level: int) -> str:
    return f"celery_delayed_{level}"


def delayed_routing_key(delay_s: float, routing_key: str) -> str:
    """Return the key with which ENTRY_EXCHANGE holds a message back for a delay in seconds.

    The delay is rounded up to whole seconds, so that nothing arrives early, and kept within 1 and
    MAX_DELAY_S. A delay that the key already carries, from an earlier wait, is replaced.
    """
    seconds = math.ceil(min(max(delay_s, 1), MAX_DELAY_S))
    return ".".join(f"{seconds:0{LEVELS}b}") + "." + plain_routing_key(routing_key)


def plain_routing_key(routing_key: str) -> str:
    """Return a delivery's routing key without the delay that it came over the ladder with."""
    return _PREFIX.sub("", routing_key, count=1) if _PREFIX.match(routing_key) else routing_key


def declare_ladder(channel: BlockingChannel) -> None:
    """Declare the levels and what connects them; a second call changes nothing."""
    channel.exchange_declare(DELIVERY_EXCHANGE, "topic", durable=True)
    for level in range(LEVELS):
        name = level_name(level)
        below = level_name(level - 1) if level else DELIVERY_EXCHANGE
        digit = "*." * (LEVELS - 1 - level)
        channel.exchange_declare(name, "topic", durable=True)
        channel.queue_declare(name, durable=True, arguments=_queue_arguments(level, below))
        channel.queue_bind(name, name, f"{digit}1.#")
        channel.exchange_bind(below, name, f"{digit}0.#")


def _queue_arguments(level: int, below: str) -> dict[str, Any]:
    return {
        "x-queue-type": "quorum",
        "x-overflow": "reject-publish",
        "x-message-ttl": 2**level * 1000,
        "x-dead-letter-exchange": below,
        "x-dead-letter-strategy": "at-least-once",
    }
