"""Make of a task what the broker gets: where it goes, and whether a container would read it at all."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from dispatcher import tasks
from dispatcher.broker import delay_ladder, topology
from dispatcher.errors import Unencodable
from dispatcher.message import envelope
from dispatcher.message.body import MAX_BODY_BYTES

#: Headers with further routing keys (https://www.rabbitmq.com/docs/sender-selected): published again with
#: them, a message would be doubled.
FURTHER_KEYS = frozenset({"CC", "BCC"})


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message as the broker gets it; `properties` are keyword arguments of pika.BasicProperties."""

    exchange: str
    routing_key: str
    body: bytes
    properties: dict[str, Any]
    #: True: the broker returns it when no queue is bound for it.
    mandatory: bool = True


def make_outgoing(task: envelope.TaskMessage) -> Outgoing:
    """Return what to send for a task, by way of the delay ladder if its eta is to come.

    Raises Unencodable for what JSON cannot express, and for more than a container reads.
    """
    try:
        body, properties = envelope.encode(task)
    except (TypeError, ValueError, RecursionError) as exc:
        raise Unencodable(task.id, f"task {task.id} cannot be written as JSON: {exc}") from exc
    if len(body) > MAX_BODY_BYTES:
        raise Unencodable(task.id, f"task {task.id} has {len(body)} bytes; at most {MAX_BODY_BYTES} are read")
    exchange, routing_key = topology.TASKS_EXCHANGE, tasks.routing_key(task.name)
    delay_s = (task.eta - datetime.now(timezone.utc)).total_seconds() if task.eta else 0.0
    if delay_s > 0:
        exchange = delay_ladder.ENTRY_EXCHANGE
        routing_key = delay_ladder.delayed_routing_key(delay_s, routing_key)
    return Outgoing(exchange, routing_key, body, properties)
