"""What waits in the task queues, found without losing, doubling or aging a message.

AMQP has no way to look: a message has to be taken. To give it back counts as a delivery, of which a
quorum queue allows five (nack does so up to RabbitMQ 4.2, reject always, a closed connection too), so
looking now and then would end as dead letters. Each message is published again instead, confirmed, and
acknowledged after that: the queue turns round once. Nothing is taken before a publish has been confirmed,
and the first message goes alone. A crash in between leaves a duplicate, which every task survives.

The walk ends at the first copy of its own that comes back, because containers take messages meanwhile;
that one is given back, at the head, where it was.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pika
from pika.exceptions import AMQPError

from dispatcher.broker import topology
from dispatcher.broker.connection import answers_within, connect, tolerant_tables
from dispatcher.broker.outgoing import Outgoing
from dispatcher.broker.publisher import Publisher
from dispatcher.errors import MalformedMessage, NotConfirmed, PublishError
from dispatcher.interrupts import Stop
from dispatcher.message.envelope import TaskMessage, decode, is_short_text
from dispatcher.settings import BrokerSettings
from dispatcher.tasks import lab_instance_id_of
from jobs.verify.copies import Taken, make_copy, make_dead_letter
from jobs.verify.inventory import Message

if TYPE_CHECKING:
    from pika.adapters.blocking_connection import BlockingChannel

#: Messages in our hands at a time: containers wait for them meanwhile, some 20 ms.
BATCH = 50
#: Bytes of bodies after which no further message is taken at the same time.
BATCH_BYTES = 8 * 2**20
#: Priorities above this are high in a quorum queue (https://www.rabbitmq.com/docs/quorum-queues#priorities).
_HIGH_PRIORITY = 4
#: A routing key that binds no queue of ours.
PROBE_KEY = "autolabs.verify"
#: Seconds for a polite goodbye.
CLOSE_TIMEOUT_S = 2.0


class BrokerAway(Exception):
    """Raised when the broker does not answer, or takes no messages."""


class Queues:
    """Two connections to the broker: one takes and acknowledges, the other publishes."""

    def __init__(self, settings: BrokerSettings, *, stop: Stop | None = None) -> None:
        """Connect. Raises BrokerAway."""
        self.publisher = Publisher(settings, name="autolabs-verify-publish")
        self._stop = stop or Stop()
        try:
            self._connection = connect(settings, name="autolabs-verify")
            self._channel = self._connection.channel()
        except AMQPError as exc:
            raise BrokerAway(repr(exc)) from exc

    def close(self) -> None:
        """Leave the broker; a message in our hands goes back to its queue."""
        self.publisher.close()
        try:
            with answers_within(self._connection, CLOSE_TIMEOUT_S):
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
            BrokerAway: nothing was taken, or what is in our hands then goes back to the queue.
            Interrupted: somebody asked for it, and the queue did not go round in time.
        """
        try:
            with tolerant_tables():
                yield from _Walk(self, self._channel, queue, gap, discard, self._stop).run()
        except AMQPError as exc:
            raise BrokerAway(repr(exc)) from exc

    def prove_publishing(self) -> None:
        """Raise BrokerAway unless the broker takes messages from this user."""
        for exchange in (topology.TASKS_EXCHANGE, topology.GIVEN_UP_EXCHANGE):
            try:
                self.publisher.publish(exchange, PROBE_KEY, b"", {}, mandatory=False)
            except PublishError as exc:
                raise BrokerAway(f"nothing was taken, because nothing could be put back: {exc}") from exc

    def publish_task(self, task: TaskMessage) -> None:
        """Publish a task, confirmed. Raises BrokerAway."""
        try:
            self.publisher.publish_task(task)
        except PublishError as exc:
            raise BrokerAway(str(exc)) from exc


class _Walk:
    """One turn of one queue."""

    def __init__(
        self,
        queues: Queues,
        channel: BlockingChannel,
        queue: str,
        gap: Callable[[str], None],
        discard: Callable[[Message], bool],
        stop: Stop,
    ) -> None:
        self._queues = queues
        self._channel = channel
        self._queue = queue
        self._gap = gap
        self._discard = discard
        self._stop = stop
        self._id = uuid.uuid4().hex
        self._priorities: set[int] = set()
        #: What nobody takes, and our own copy that came back: to be given back at the end, in this order.
        self._stuck: list[Taken] = []
        self._own: Taken | None = None

    def run(self) -> Iterator[Message]:
        left = self._queues.count([self._queue])
        if not left:
            return
        self._queues.prove_publishing()
        most, goes_on = 1, True
        while left > 0 and goes_on and self._own is None:
            self._stop.check_on_the_way()
            taken = self._take(min(most, left))
            if not taken:
                break
            left -= len(taken)
            found, goes_on = self._turn(taken)
            yield from found
            most = BATCH
        self._give_back()
        self._tell(left, goes_on=goes_on)

    def _take(self, most: int) -> list[Taken]:
        """Take messages, but none behind our own first copy."""
        taken: list[Taken] = []
        size = 0
        while len(taken) < most and size < BATCH_BYTES:
            method, properties, body = self._channel.basic_get(self._queue)
            if method is None or properties is None or body is None:
                break
            key = method.routing_key
            # pika gives what is not UTF-8 as bytes.
            routing_key = key.decode(errors="surrogateescape") if isinstance(key, bytes) else key
            message = Taken(method.delivery_tag, routing_key, properties, body)
            if message.copied_by == self._id:
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
            self._channel.basic_ack(tag)
        # What is worn out is a dead letter now; its copy for a container is met in another queue.
        here = {one.tag for one in taken if not one.worn_out} | {one.tag for one in self._stuck}
        return [found for one, found in seen if one.tag in here], not stuck or len(stuck) < len(to_publish)

    def _put_behind(self, messages: list[Taken]) -> list[Taken]:
        """Publish copies, acknowledge what is confirmed, return what nobody takes."""
        now = datetime.now(timezone.utc)
        copies = [
            make_dead_letter(self._queue, one, now) if one.worn_out else copy
            for one, copy in zip(messages, self._copies(messages), strict=True)
        ]
        stuck = self._publish(messages, copies) if messages else []
        # Its bindings are gone, perhaps; a queue is always bound by its name.
        if stuck:
            by_name = [replace(copy, exchange="", routing_key=self._queue) for copy in self._copies(stuck)]
            stuck = self._publish(stuck, by_name)
        return stuck

    def _copies(self, messages: list[Taken]) -> list[Outgoing]:
        now = datetime.now(timezone.utc)
        return [make_copy(self._queue, one, self._id, now) for one in messages]

    def _publish(self, messages: list[Taken], copies: list[Outgoing]) -> list[Taken]:
        errors = self._queues.publisher.publish_all(copies)
        stuck = []
        for message, error in zip(messages, errors, strict=True):
            if error is None:
                self._channel.basic_ack(message.tag)
            else:
                stuck.append(message)
        if lost := next((error for error in errors if isinstance(error, NotConfirmed)), None):
            self._stuck += stuck
            self._give_back()
            raise BrokerAway(str(lost)) from lost
        return stuck

    def _give_back(self) -> None:
        for message in [*self._stuck, *([self._own] if self._own else [])]:
            self._channel.basic_nack(message.tag, requeue=True)

    def _tell(self, left: int, *, goes_on: bool) -> None:
        if count := len(self._stuck):
            messages = "1 message" if count == 1 else f"{count} messages"
            self._gap(f"{self._queue}: {messages} cannot be published again, and went back")
        if not goes_on and left:
            self._gap(f"{self._queue}: so the others, {left} at most, were not taken")
        elif left > 0 and self._own and (len(self._priorities) > 1 or max(self._priorities) > _HIGH_PRIORITY):
            self._gap(f"{self._queue}: priorities may hide other messages, {left} at most")


def read(queue: str, properties: pika.BasicProperties, body: bytes) -> Message:
    """Return what a message is about; one that is no task is about no lab."""
    try:
        task = decode(body, properties)
    except MalformedMessage:
        headers = properties.headers or {}
        task_id, name = (value if is_short_text(value) else "" for value in map(headers.get, ("id", "task")))
        return Message(queue, str(task_id), str(name), None, None)
    lab = lab_instance_id_of(task.args, task.kwargs)
    return Message(queue, task.id, task.name, lab, task.published_at)
