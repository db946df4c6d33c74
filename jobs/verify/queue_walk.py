"""Find what waits in a task queue without losing, doubling or aging a message.

AMQP has no way to look: a message has to be taken. To give it back counts as a delivery, of which a
quorum queue allows five (nack does so up to RabbitMQ 4.2, reject always, a closed connection too), so
looking now and then would end as dead letters. Each message is published again instead, confirmed, and
acknowledged after that: the queue turns round once. Nothing is taken before a publish has been confirmed,
and the first message goes alone. A crash in between leaves a duplicate, which every task survives.

The walk ends at the first copy of its own that comes back, because containers take messages meanwhile;
that one is given back, at the head, where it was.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

import pika
from pika.exceptions import AMQPError

from dispatcher.broker import delay_ladder, topology
from dispatcher.broker.connection import Unreadable, tolerant_tables
from dispatcher.broker.outgoing import FURTHER_KEYS, Outgoing
from dispatcher.broker.topology import EARLIER_DELIVERIES, reason_of_copy, unsettled_deliveries, worn_out
from dispatcher.errors import MalformedMessage, NotConfirmed, PublishError
from dispatcher.interrupts import Stop
from dispatcher.message.envelope import PUBLISHED_AT, decode, header_time, is_short_text
from dispatcher.tasks import lab_instance_id_of
from dispatcher.wording import many
from jobs.database.connection import session_lock
from jobs.database.lab_store import LabStore
from jobs.verify.inventory import Message
from jobs.verify.queues import BrokerAway, Queues

#: Messages in our hands at a time: containers wait for them meanwhile, some 20 ms.
BATCH = 50
#: Bytes of bodies after which no further message is taken at the same time.
BATCH_BYTES = 8 * 2**20
#: Priorities above this are high in a quorum queue (https://www.rabbitmq.com/docs/quorum-queues#priorities).
_HIGH_PRIORITY = 4
#: A routing key that binds no queue of ours.
PROBE_KEY = "autolabs.verify"
#: Seconds to wait for another walk, which takes a few for thousands of messages.
PATIENCE_S = 120.0
_POLL_S = 0.5
#: Headers of a copy: the walk that made it, which knows by it where it began, and when.
COPIED_BY, COPIED_AT = "x-autolabs-verify", "x-autolabs-verify-at"
#: Headers that a copy must not carry: its queue counts this delivery in them, and CC or BCC would double it.
_LEFT_OUT = {"x-delivery-count", "x-acquired-count", *FURTHER_KEYS}
#: Properties of a copy; not user_id, which the broker compares with who publishes, and no container reads.
_COPIED = (
    *("content_type", "content_encoding", "delivery_mode", "priority", "correlation_id", "reply_to"),
    *("message_id", "timestamp", "type", "app_id", "cluster_id"),
)


class Busy(Exception):
    """Raised when another walk takes too long."""


@contextmanager
def walk_lock(
    labs: LabStore, stop: Stop, progress: Callable[[str], None] = lambda _where: None
) -> Iterator[None]:
    """Wait until nobody else walks, and keep others waiting. Raises Busy, Interrupted, JobError.

    Two walks at a time would meet each other's copies, and miss some messages.
    """
    deadline = time.monotonic() + PATIENCE_S

    def pause() -> None:
        if time.monotonic() >= deadline:
            raise Busy(f"somebody else has looked at them for {PATIENCE_S:g} s")
        progress("another verify looks at the queues, waiting")
        stop.pause(_POLL_S)

    with session_lock(labs, "autolabs.verify", pause=pause):
        yield


def walk(
    queues: Queues,
    queue: str,
    *,
    gap: Callable[[str], None],
    discard: Callable[[Message], bool] = lambda _seen: False,
) -> Iterator[Message]:
    """Yield what waits in a queue when the walk begins, and move it behind what comes meanwhile.

    What `discard` returns True for is acknowledged and not published again. `gap` is told, in plain
    words, what could not be looked at.

    Raises:
        BrokerAway: nothing was taken, or what is in our hands then goes back to the queue.
        Interrupted: somebody asked for it, and the queue did not go round in time.
    """
    try:
        with tolerant_tables():
            yield from _Walk(queues, queue, gap, discard).run()
    except AMQPError as exc:
        raise BrokerAway(repr(exc)) from exc


@dataclass(frozen=True, slots=True)
class Taken:
    """A message in our hands."""

    tag: int
    routing_key: str
    properties: pika.BasicProperties
    body: bytes

    @property
    def headers(self) -> dict[str, Any]:
        return self.properties.headers or {}

    @property
    def worn_out(self) -> bool:
        """True once the broker would have given it up, had nobody copied it."""
        return worn_out(self.headers)

    @property
    def unreadable(self) -> bool:
        """True if a header cannot be read, and so not be written again."""
        return _has_unreadable(self.headers)


@dataclass
class _Walk:
    """One turn of one queue."""

    _queues: Queues
    _queue: str
    _gap: Callable[[str], None]
    _discard: Callable[[Message], bool]
    _id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _priorities: set[int] = field(default_factory=set)
    #: What nobody takes, and our own copy that came back: to be given back at the end, in this order.
    _stuck: list[Taken] = field(default_factory=list)
    _own: Taken | None = None

    def run(self) -> Iterator[Message]:
        left = self._queues.count([self._queue])
        if not left:
            return
        self._prove_publishing()
        most, goes_on = 1, True
        while left > 0 and goes_on and self._own is None:
            self._queues.stop.check_on_the_way()
            taken = self._take(min(most, left))
            if not taken:
                break
            left -= len(taken)
            found, goes_on = self._turn(taken)
            yield from found
            most = BATCH
        self._give_back()
        self._tell(left, goes_on=goes_on)

    def _prove_publishing(self) -> None:
        """Raise BrokerAway unless the broker takes messages from this user."""
        for exchange in (topology.TASKS_EXCHANGE, topology.GIVEN_UP_EXCHANGE):
            try:
                self._queues.publisher.publish(exchange, PROBE_KEY, b"", {}, mandatory=False)
            except PublishError as exc:
                raise BrokerAway(f"nothing was taken, because nothing could be put back: {exc}") from exc

    def _take(self, most: int) -> list[Taken]:
        """Take messages, but none behind our own first copy."""
        taken: list[Taken] = []
        size = 0
        while len(taken) < most and size < BATCH_BYTES:
            method, properties, body = self._queues.channel.basic_get(self._queue)
            if method is None or properties is None or body is None:
                break
            key = method.routing_key
            # pika gives what is not UTF-8 as bytes.
            routing_key = key.decode(errors="surrogateescape") if isinstance(key, bytes) else key
            message = Taken(method.delivery_tag, routing_key, properties, body)
            if message.headers.get(COPIED_BY) == self._id:
                self._own = message
                break
            taken.append(message)
            size += len(body)
            self._priorities.add(properties.priority or 0)
        return taken

    def _turn(self, taken: list[Taken]) -> tuple[list[Message], bool]:
        """Put messages behind the others; return what they are about, and whether that is possible at all."""
        seen = [(one, read(self._queue, one.properties, one.body)) for one in taken]
        gone = {one.tag for one, found in seen if self._discard(found)}
        self._stuck += (one for one in taken if one.unreadable and one.tag not in gone)
        to_publish = [one for one in taken if not one.unreadable and one.tag not in gone]
        stuck = self._put_behind(to_publish)
        self._stuck += stuck
        for tag in gone:
            self._queues.channel.basic_ack(tag)
        # What is worn out is a dead letter now; its copy for a container is met in another queue.
        here = {one.tag for one in taken if not one.worn_out} | {one.tag for one in self._stuck}
        return [found for one, found in seen if one.tag in here], not stuck or len(stuck) < len(to_publish)

    def _put_behind(self, messages: list[Taken]) -> list[Taken]:
        """Publish copies, acknowledge what is confirmed, return what nobody takes."""
        now = datetime.now(timezone.utc)
        copies = [
            make_dead_letter(self._queue, one, now) if one.worn_out else self._copy(one, now)
            for one in messages
        ]
        stuck = self._publish(messages, copies) if messages else []
        # Its bindings are gone, perhaps; a queue is always bound by its name.
        if stuck:
            by_name = [replace(self._copy(one, now), exchange="", routing_key=self._queue) for one in stuck]
            stuck = self._publish(stuck, by_name)
        return stuck

    def _copy(self, one: Taken, now: datetime) -> Outgoing:
        return make_copy(self._queue, one, self._id, now)

    def _publish(self, messages: list[Taken], copies: list[Outgoing]) -> list[Taken]:
        errors = self._queues.publisher.publish_all(copies)
        stuck = []
        for message, error in zip(messages, errors, strict=True):
            if error is None:
                self._queues.channel.basic_ack(message.tag)
            else:
                stuck.append(message)
        if lost := next((error for error in errors if isinstance(error, NotConfirmed)), None):
            self._stuck += stuck
            self._give_back()
            raise BrokerAway(str(lost)) from lost
        return stuck

    def _give_back(self) -> None:
        for message in [*self._stuck, *([self._own] if self._own else [])]:
            self._queues.channel.basic_nack(message.tag, requeue=True)

    def _tell(self, left: int, *, goes_on: bool) -> None:
        if self._stuck:
            messages = many(len(self._stuck), "message")
            self._gap(f"{self._queue}: {messages} cannot be published again, and went back")
        if not goes_on and left:
            self._gap(f"{self._queue}: so the others, {left} at most, were not taken")
        elif left > 0 and self._own and (len(self._priorities) > 1 or max(self._priorities) > _HIGH_PRIORITY):
            self._gap(f"{self._queue}: priorities may hide other messages, {left} at most")


def read(queue: str, properties: pika.BasicProperties, body: bytes) -> Message:
    try:
        task = decode(body, properties)
    except MalformedMessage:
        headers = properties.headers or {}
        task_id, name = (value if is_short_text(value) else "" for value in map(headers.get, ("id", "task")))
        return Message(queue, str(task_id), str(name), None, None)
    lab = lab_instance_id_of(task.args, task.kwargs)
    return Message(queue, task.id, task.name, lab, task.published_at)


def make_copy(queue: str, taken: Taken, walk: str, now: datetime) -> Outgoing:
    """Return what leads a message back to its queue; its count of deliveries goes on."""
    properties = _properties(taken)
    properties["headers"] |= {COPIED_BY: walk, COPIED_AT: now.isoformat(timespec="milliseconds")}
    if deliveries := unsettled_deliveries(taken.headers):
        properties["headers"][EARLIER_DELIVERIES] = deliveries
    if taken.properties.expiration is not None:
        properties["expiration"] = _expiration_left(taken, now)
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
    properties["headers"] = {name: value for name, value in taken.headers.items() if name not in _LEFT_OUT}
    return properties


def _way_back(queue: str, taken: Taken) -> tuple[str, str]:
    """Return exchange and routing key that lead to the queue, by what the job's own user may write to."""
    plain = delay_ladder.plain_routing_key(taken.routing_key)
    if plain in topology.BINDINGS[queue]:
        return topology.TASKS_EXCHANGE, plain
    if reason_of_copy(queue, taken.headers) in topology.GIVEN_UP_REASONS:
        return topology.GIVEN_UP_EXCHANGE, _printable(taken.routing_key)
    # It was sent to the queue by its name, or by a CC; no container asks by which key it came.
    return topology.TASKS_EXCHANGE, topology.BINDINGS[queue][0]


def _printable(routing_key: str) -> str:
    # pika gives what is not UTF-8 as bytes (see _Walk._take).
    return routing_key.encode(errors="replace").decode()


def _expiration_left(taken: Taken, now: datetime) -> str:
    """Return the milliseconds that are left of an expiration, which otherwise would begin anew."""
    headers, given = taken.headers, taken.properties.expiration
    if not given.isdigit():
        return str(given)
    left_ms = int(given)
    if expires := header_time(headers.get("expires")):
        left_ms = min(left_ms, int((expires - now).total_seconds() * 1000))
    elif begun_at := header_time(headers.get(COPIED_AT)) or header_time(headers.get(PUBLISHED_AT)):
        left_ms -= max(0, int((now - begun_at).total_seconds() * 1000))
    return str(max(0, left_ms))


def _has_unreadable(value: object) -> bool:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Unreadable):
            return True
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False
