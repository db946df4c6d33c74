"""How often a message came back to its queue, also before somebody copied it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dispatcher.broker.topology import DELIVERY_LIMIT, QUEUE_HIGH, QUEUE_LOW, QUEUE_NORMAL

#: Header of a copy (jobs.verify.queue_walk): the deliveries before it, which its queue does not know.
EARLIER_DELIVERIES = "x-autolabs-deliveries"


def unsettled_deliveries(headers: Mapping[str, Any] | None) -> int:
    """Return how often a message with these headers was delivered and not settled."""
    counts = [(headers or {}).get(name) for name in ("x-delivery-count", EARLIER_DELIVERIES)]
    return sum(max(0, count) for count in counts if isinstance(count, int))


def worn_out(headers: Mapping[str, Any] | None) -> bool:
    """Tell whether the broker would have given the message up, had nobody copied it."""
    return unsettled_deliveries(headers) > DELIVERY_LIMIT


def reason_of_copy(queue: str, headers: Mapping[str, Any] | None) -> str | None:
    """Return why the broker took a message from its queue, if this is the copy by which its lab learns.

    `queue` is where the message is now: copies come to one queue alone, and anywhere else the headers are
    somebody's own, or those of a dead letter that was moved back by hand.
    """
    # Since RabbitMQ 3.13 (https://www.rabbitmq.com/docs/dlx#effects).
    found = headers or {}
    copied = queue == QUEUE_LOW and found.get("x-last-death-queue") in (QUEUE_HIGH, QUEUE_NORMAL)
    return found.get("x-last-death-reason") if copied else None
