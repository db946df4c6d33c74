"""How often a message came back to its queue, also before somebody copied it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dispatcher.topology import DELIVERY_LIMIT

#: Header of a copy (jobs.verify.copies): the deliveries before it, which its queue does not know.
EARLIER_DELIVERIES = "x-autolabs-deliveries"


def unsettled_deliveries(headers: Mapping[str, Any] | None) -> int:
    """Return how often a message with these headers was delivered and not settled."""
    counts = [(headers or {}).get(name) for name in ("x-delivery-count", EARLIER_DELIVERIES)]
    return sum(max(0, count) for count in counts if isinstance(count, int))


def worn_out(headers: Mapping[str, Any] | None) -> bool:
    """Tell whether the broker would have given the message up, had nobody copied it."""
    return unsettled_deliveries(headers) > DELIVERY_LIMIT
