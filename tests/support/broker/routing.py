"""Where a routing key leads, and for how long the delay ladder holds it."""

from __future__ import annotations

from dispatcher.broker import delay_ladder, topology


def queue_for(routing_key: str) -> str:
    """Return the queue to which a routing key of the tasks exchange leads."""
    return next(queue for queue, keys in topology.BINDINGS.items() if routing_key in keys)


def delay_of(routing_key: str) -> int:
    """Return the whole seconds that a routing key asks for, 0 for a plain one."""
    plain = delay_ladder.plain_routing_key(routing_key)
    return int(routing_key.removesuffix(plain).replace(".", "") or "0", 2)
