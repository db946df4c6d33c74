"""What waits in the task queues, found without losing, doubling or aging a message.

AMQP has no way to look: a message has to be taken. To give it back counts as a delivery, of which a
quorum queue allows five (nack does so up to RabbitMQ 4.2, reject always), so looking now and then would
end as dead letters. Each message is published again instead, confirmed, and acknowledged after that: the
queue turns round once, everything keeps its order. A crash in between leaves a duplicate, which every task
survives. What a message loses is its count of deliveries, so a look gives one over which containers die a
few more of them.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

import pika
from pika.exceptions import AMQPError

from dispatcher import ladder, topology
from dispatcher.connection import connect
from dispatcher.errors import MalformedMessage, NotConfirmed, PublishError
from dispatcher.message import PUBLISHED_AT, TaskMessage, decode, is_short_text
from dispatcher.outgoing import Outgoing
from dispatcher.publisher import Publisher
from dispatcher.settings import BrokerSettings
from jobs.verify.inventory import Message

#: Messages in our hands at a time: containers wait for them meanwhile, some 20 ms.
BATCH = 50
#: Bytes of bodies after which no further message is taken at the same time.
BATCH_BYTES = 8 * 2**20
#: Headers of a copy: the walk that made it, which knows by it where it began, and when.
COPIED_BY, COPIED_AT = "x-autolabs-verify", "x-autolabs-verify-at"
#: Copies in a row after which the queue has gone round. Up to RabbitMQ 4.2 two messages of high priority
#: come for each other one, so a few say nothing.
_ROUND = 10
#: Priorities above this are high in a quorum queue (https://www.rabbitmq.com/docs/quorum-queues#priorities).
_HIGH_PRIORITY = 4


class BrokerAway(Exception):
    """Raised when the broker does not answer, or takes no messages."""


@dataclass(frozen=True, slots=True)
class _Taken:
    tag: int
    routing_key: str
    properties: pika.BasicProperties
    body: bytes

    @property
    def copied_by(self) -> object:
        return (self.properties.headers or {}).get(COPIED_BY)


class Queues:
    """Two connections to the broker: one takes and acknowledges, the other publishes."""

    def __init__(self, settings: BrokerSettings) -> None:
        """Connect. Raises BrokerAway."""
        self.publisher = Publisher(settings, name="autolabs-verify-publish")
        try:
            self._connection = connect(settings, name="autolabs-verify")
            self._channel = self._connection.channel()
        except AMQPError as exc:
            raise BrokerAway(repr(exc)) from exc

    def close(self) -> None:
        """Leave the broker; a message in our hands goes back to its queue."""
        self.publisher.close()
        try:
            if self._connection.is_open:
                self._connection.close()
        except AMQPError:
            return  # it is closed, that is what counts

    def count(self, queues: Collection[str]) -> int:
        """Return how many messages wait in these queues. Raises BrokerAway, also for one that is missing."""
        try:
            return sum(
                int(self._channel.queue_declare(queue, passive=True).method.message_count) for queue in queues
            )
        except AMQPError as exc:
            raise BrokerAway(repr(exc)) from exc

    def walk(
        self,
        queue: str,
        *,
        gap: Callable[[str], None],
        discard: Callable[[Message], bool] = lambda _seen: False,
    ) -> Iterator[Message]:
        """Yield what waits in a queue when the walk begins, and move it behind what comes meanwhile.

        What `discard` returns True for is acknowledged and not published again. `gap` is told, in plain
        words, what could not be looked at.

        Raises:
            BrokerAway: what is in our hands then goes back to the queue.
        """
        try:
            yield from self._walk(queue, gap, discard)
        except AMQPError as exc:
            raise BrokerAway(repr(exc)) from exc

    def _walk(
        self, queue: str, gap: Callable[[str], None], discard: Callable[[Message], bool]
    ) -> Iterator[Message]:
        walk = uuid.uuid4().hex
        waiting = left = self.count([queue])
        stuck: list[int] = []
        # The newest own copies that were met in a row.
        met: deque[bool] = deque(maxlen=_ROUND)
        takes_left = 3 * waiting + BATCH
        while left > 0 and takes_left > 0 and len(met) < _ROUND and (taken := self._take(queue, left)):
            takes_left -= len(taken)
            fresh = [message for message in taken if message.copied_by != walk]
            for message in taken:
                if message.copied_by == walk:
                    met.append((message.properties.priority or 0) <= _HIGH_PRIORITY)
                else:
                    met.clear()
            left -= len(fresh)
            seen = [(message, read(queue, message.properties, message.body)) for message in fresh]
            gone = {message.tag for message, found in seen if discard(found)}
            stuck += self._put_behind(queue, walk, [message for message in taken if message.tag not in gone])
            for tag in gone:
                self._channel.basic_ack(tag)
            yield from (found for message, found in seen)
        for tag in stuck:
            self._channel.basic_nack(tag, requeue=True)
        if stuck:
            gap(f"{queue}: {len(stuck)} messages cannot be published again; they were given back")
        if left > 0 and met and not any(met):
            gap(f"{queue}: messages of high priority hide {left} others")

    def _take(self, queue: str, most: int) -> list[_Taken]:
        taken: list[_Taken] = []
        size = 0
        # One more than is left would be our own first copy.
        while len(taken) < min(BATCH, most) and size < BATCH_BYTES:
            method, properties, body = self._channel.basic_get(queue)
            if method is None or properties is None or body is None:
                break
            key = method.routing_key
            # pika gives what is not UTF-8 as bytes.
            routing_key = key.decode(errors="surrogateescape") if isinstance(key, bytes) else key
            taken.append(_Taken(method.delivery_tag, routing_key, properties, body))
            size += len(body)
        return taken

    def _put_behind(self, queue: str, walk: str, taken: list[_Taken]) -> list[int]:
        """Publish copies, acknowledge what is confirmed, return the tags of what nobody takes."""
        now = datetime.now(timezone.utc)
        errors = self.publisher.publish_all([make_copy(queue, message, walk, now) for message in taken])
        stuck = []
        for message, error in zip(taken, errors, strict=True):
            if error is None:
                self._channel.basic_ack(message.tag)
            else:
                stuck.append(message.tag)
        if lost := next((error for error in errors if isinstance(error, NotConfirmed)), None):
            self._give_back(stuck)
            raise BrokerAway(str(lost)) from lost
        return stuck

    def _give_back(self, tags: list[int]) -> None:
        for tag in tags:
            self._channel.basic_nack(tag, requeue=True)

    def publish_task(self, task: TaskMessage) -> None:
        """Publish a task, confirmed. Raises BrokerAway."""
        try:
            self.publisher.publish_task(task)
        except PublishError as exc:
            raise BrokerAway(str(exc)) from exc


def make_copy(queue: str, taken: _Taken, walk: str, now: datetime) -> Outgoing:
    """Return the message as it is to be published: the same but for what the broker counts."""
    properties = {
        name: value for name in _COPIED if (value := getattr(taken.properties, name, None)) is not None
    }
    headers = {
        **(taken.properties.headers or {}),
        COPIED_BY: walk,
        COPIED_AT: now.isoformat(timespec="milliseconds"),
    }
    # Of this delivery, by the queue.
    headers.pop("x-delivery-count", None)
    properties["headers"] = headers
    if taken.properties.expiration is not None:
        properties["expiration"] = _expiration_left(taken.properties, now)
    exchange, routing_key = _way_back(queue, taken)
    return Outgoing(exchange, routing_key, taken.body, properties)


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


def _way_back(queue: str, taken: _Taken) -> tuple[str, str]:
    """Return exchange and routing key that lead to the queue, by what the job's own user may write to."""
    plain = ladder.plain_routing_key(taken.routing_key)
    if plain in topology.BINDINGS[queue]:
        return topology.TASKS_EXCHANGE, plain
    headers = taken.properties.headers or {}
    from_queue, reason = headers.get("x-last-death-queue"), headers.get("x-last-death-reason")
    given_up = from_queue in (topology.QUEUE_HIGH, topology.QUEUE_NORMAL)
    if queue == topology.QUEUE_LOW and given_up and reason in ("expired", "delivery_limit"):
        return topology.GIVEN_UP_EXCHANGE, taken.routing_key
    return "", queue


def _expiration_left(properties: pika.BasicProperties, now: datetime) -> str:
    """Return the milliseconds that are left of an expiration, which otherwise would begin anew."""
    headers = properties.headers or {}
    given = properties.expiration
    if not given.isdigit():
        return str(given)
    left_ms = int(given)
    if expires := _time(headers.get("expires")):
        left_ms = min(left_ms, int((expires - now).total_seconds() * 1000))
    elif begun_at := _time(headers.get(COPIED_AT)) or _time(headers.get(PUBLISHED_AT)):
        left_ms -= max(0, int((now - begun_at).total_seconds() * 1000))
    return str(max(0, left_ms))


def read(queue: str, properties: pika.BasicProperties, body: bytes) -> Message:
    """Return what a message is about; one that is no task is about no lab."""
    try:
        task = decode(body, properties)
    except MalformedMessage:
        headers = properties.headers or {}
        task_id, name = (value if is_short_text(value) else "" for value in map(headers.get, ("id", "task")))
        return Message(queue, str(task_id), str(name), None, None)
    lab = task.kwargs.get("lab_instance_id", task.args[0] if task.args else None)
    valid = type(lab) is int and 0 < lab < 2**63
    return Message(queue, task.id, task.name, lab if valid else None, task.published_at)


def _time(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
