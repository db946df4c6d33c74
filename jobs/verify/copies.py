"""A message as it is published again: the same but for what a broker would count or route anew."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pika

from dispatcher.broker import delay_ladder, topology
from dispatcher.broker.connection import Unreadable
from dispatcher.broker.outgoing import FURTHER_KEYS, Outgoing
from dispatcher.broker.topology import EARLIER_DELIVERIES, reason_of_copy, unsettled_deliveries, worn_out
from dispatcher.message.envelope import PUBLISHED_AT, header_time

#: Headers of a copy: the walk that made it, which knows by it where it began, and when.
COPIED_BY, COPIED_AT = "x-autolabs-verify", "x-autolabs-verify-at"
#: Of this delivery, by the queue; and further routing keys, by which each copy would be doubled.
_LEFT_OUT = {"x-delivery-count", "x-acquired-count", *FURTHER_KEYS}
#: Not user_id, which the broker compares with who publishes, and which no container reads.
_COPIED = (
    "content_type",
    "content_encoding",
    "delivery_mode",
    "priority",
    "correlation_id",
    "reply_to",
    "message_id",
    "timestamp",
    "type",
    "app_id",
    "cluster_id",
)


@dataclass(frozen=True, slots=True)
class Taken:
    """A message in our hands."""

    tag: int
    routing_key: str
    properties: pika.BasicProperties
    body: bytes

    @property
    def copied_by(self) -> object:
        """The walk that made it, if one did."""
        return (self.properties.headers or {}).get(COPIED_BY)

    @property
    def deliveries(self) -> int:
        """How often it came back to its queue, in whatever copy."""
        return unsettled_deliveries(self.properties.headers)

    @property
    def worn_out(self) -> bool:
        """True once the broker would have given it up, had nobody copied it."""
        return worn_out(self.properties.headers)

    @property
    def unreadable(self) -> bool:
        """True if a header cannot be read, and so not be written again."""
        return _has_unreadable([self.properties.headers])


def make_copy(queue: str, taken: Taken, walk: str, now: datetime) -> Outgoing:
    """Return what leads a message back to its queue; its count of deliveries goes on."""
    properties = _properties(taken)
    properties["headers"] |= {COPIED_BY: walk, COPIED_AT: now.isoformat(timespec="milliseconds")}
    if taken.deliveries:
        properties["headers"][EARLIER_DELIVERIES] = taken.deliveries
    if taken.properties.expiration is not None:
        properties["expiration"] = _expiration_left(taken.properties, now)
    exchange, routing_key = _way_back(queue, taken)
    return Outgoing(exchange, routing_key, taken.body, properties)


def make_dead_letter(queue: str, taken: Taken, now: datetime) -> Outgoing:
    """Return what the broker would make of a worn out message, for celery.dlq and for a container."""
    properties = _properties(taken)
    headers = properties["headers"]
    # Or the copy for the container would be worn out as well.
    headers.pop(EARLIER_DELIVERIES, None)
    for when in ("last", "first"):
        headers[f"x-{when}-death-reason"] = "delivery_limit"
        headers[f"x-{when}-death-queue"] = queue
        headers[f"x-{when}-death-exchange"] = topology.TASKS_EXCHANGE
    headers["x-death"] = [
        {
            "reason": "delivery_limit",
            "queue": queue,
            "exchange": topology.TASKS_EXCHANGE,
            "routing-keys": [_printable(taken.routing_key)],
            "count": 1,
            "time": now.replace(microsecond=0),
        }
    ]
    return Outgoing(topology.DEAD_LETTER_EXCHANGE, _printable(taken.routing_key), taken.body, properties)


def _properties(taken: Taken) -> dict[str, Any]:
    properties = {
        name: value for name in _COPIED if (value := getattr(taken.properties, name, None)) is not None
    }
    headers = taken.properties.headers or {}
    properties["headers"] = {name: value for name, value in headers.items() if name not in _LEFT_OUT}
    return properties


def _way_back(queue: str, taken: Taken) -> tuple[str, str]:
    """Return exchange and routing key that lead to the queue, by what the job's own user may write to."""
    plain = delay_ladder.plain_routing_key(taken.routing_key)
    if plain in topology.BINDINGS[queue]:
        return topology.TASKS_EXCHANGE, plain
    if reason_of_copy(queue, taken.properties.headers) in topology.GIVEN_UP_REASONS:
        return topology.GIVEN_UP_EXCHANGE, _printable(taken.routing_key)
    # It was sent to the queue by its name, or by a CC; no container asks by which key it came.
    return topology.TASKS_EXCHANGE, topology.BINDINGS[queue][0]


def _printable(routing_key: str) -> str:
    # pika gives what is not UTF-8 as bytes (see Queues).
    return routing_key.encode(errors="replace").decode()


def _expiration_left(properties: pika.BasicProperties, now: datetime) -> str:
    """Return the milliseconds that are left of an expiration, which otherwise would begin anew."""
    headers = properties.headers or {}
    given = properties.expiration
    if not given.isdigit():
        return str(given)
    left_ms = int(given)
    if expires := header_time(headers.get("expires")):
        left_ms = min(left_ms, int((expires - now).total_seconds() * 1000))
    elif begun_at := header_time(headers.get(COPIED_AT)) or header_time(headers.get(PUBLISHED_AT)):
        left_ms -= max(0, int((now - begun_at).total_seconds() * 1000))
    return str(max(0, left_ms))


def _has_unreadable(values: Iterable[object]) -> bool:
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, Unreadable):
            return True
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False
