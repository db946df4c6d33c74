"""Look at the dead-letter queue message by message; what is not taken stays, in its order.

One process at a time looks: messages that one holds are invisible to another, which would take them for
gone. Whatever ends the process, the broker has every message again that was not taken. A signal ends it
between two messages; their order stays, unless the rest takes longer than FINISH_S seconds.

A body is in memory only while it is looked at. The broker is spared too: it loads every body that a
consumer may get, so a consumer holds a few messages and then another takes its place. The broker returns
the messages of one consumer in their order, which as many basic.get do not get, and those of several
consumers in the order of the returns, as long as few of them are under way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelClosedByBroker

from console.dlq.letters import DeadLetter, read_letter
from dispatcher.broker.connection import connect, tolerant_tables
from dispatcher.broker.topology import DEAD_LETTER_QUEUE
from dispatcher.errors import DispatcherError
from dispatcher.interrupts import Stop, in_a_hurry, stop_on_signals
from dispatcher.settings import BrokerSettings

#: An exclusive queue: the broker takes it away with the connection of whoever looks.
LOCK_QUEUE = "autolabs.dlq.lock"
#: Seconds to wait for another process that looks; a thousand messages take one.
LOCK_TIMEOUT_S = 60.0
#: Seconds without the next message: somebody purged the queue.
IDLE_TIMEOUT_S = 20.0
#: Seconds without the next message after a failure or a signal.
UNWANTED_IDLE_S = 2.0
#: Messages that one consumer holds: at most 80 MiB in the broker, whose messages have 16 MiB at most.
MAX_IN_FLIGHT = 5
#: Returns under way: from 32 commands on rabbit_fifo_client holds them back and mixes the consumers.
MAX_RETURNS = 16
#: Seconds for the broker to count as ready what was returned.
RETURN_TIMEOUT_S = 10.0
#: Seconds to go on after a failure or a signal: what is returned goes behind what was never taken, since a
#: quorum queue without a delivery limit has returns at its end. Ten thousand messages take that long.
FINISH_S = 10.0
_POLL_S = 0.005
_LOCK_POLL_S = 0.05
_LOCKED, _REFUSED, _MISSING = 405, 403, 404
_INTERRUPTED = "interrupted; what was not taken is in the dead-letter queue"


@dataclass(frozen=True, slots=True)
class Browsed:
    """One message under the eyes of `browse`."""

    letter: DeadLetter
    body: bytes
    properties: pika.BasicProperties


def browse(
    settings: BrokerSettings, look: Callable[[Browsed], bool], *, lock_timeout_s: float = LOCK_TIMEOUT_S
) -> int:
    """Show `look` every message that is there at the beginning; return how many those were.

    A message is taken out of the queue when `look` returns True, before the next one is shown. All
    others are returned, in their order also when `look` raises, and are ready again on return.

    Raises:
        Interrupted: SIGINT or SIGTERM came meanwhile.
        DispatcherError: the broker is not reachable, lacks the queue, refuses or breaks off; somebody
            else looked for longer than `lock_timeout_s` seconds.
    """
    looking = False
    try:
        with tolerant_tables(), stop_on_signals() as stop, _connection(settings) as connection:
            channel = _lock(connection, stop, time.monotonic() + lock_timeout_s)
            found = _ready(channel)
            looking = True
            return _Browser(channel, found, look, stop).run()
    except ChannelClosedByBroker as exc:
        raise DispatcherError(f"the dead-letter queue cannot be read: {_hint(exc)}") from exc
    except AMQPError as exc:
        kept = ". What was not taken is back in it" if looking else ""
        raise DispatcherError(f"the connection to the dead-letter queue failed: {exc!r}{kept}") from exc


@contextmanager
def _connection(settings: BrokerSettings) -> Iterator[pika.BlockingConnection]:
    connection = connect(settings, name="autolabs-dlq")
    try:
        yield connection
    finally:
        if connection.is_open and not in_a_hurry():
            connection.close()


def _lock(connection: pika.BlockingConnection, stop: Stop, deadline: float) -> BlockingChannel:
    while True:
        stop.check(_INTERRUPTED)
        channel = connection.channel()
        try:
            # Exclusive queues are classic; the default type of a vhost may be another.
            channel.queue_declare(LOCK_QUEUE, exclusive=True, arguments={"x-queue-type": "classic"})
            return channel
        except ChannelClosedByBroker as exc:
            if exc.reply_code != _LOCKED:
                raise
            if time.monotonic() >= deadline:
                raise DispatcherError(
                    "somebody else looks through the dead-letter queue; try again later"
                ) from exc
        connection.sleep(_LOCK_POLL_S)


def _ready(channel: BlockingChannel) -> int:
    return int(channel.queue_declare(DEAD_LETTER_QUEUE, passive=True).method.message_count)


class _Browser:
    """One pass through the queue."""

    def __init__(
        self, channel: BlockingChannel, found: int, look: Callable[[Browsed], bool], stop: Stop
    ) -> None:
        self._channel = channel
        self._found = found
        self._look = look
        self._stop = stop
        self._last_at = time.monotonic()
        self._seen = 0
        #: Each consumer's last delivery tag that is held, and how many are.
        self._held: list[tuple[int, int]] = []
        self._failure: BaseException | None = None
        self._unwanted_since: float | None = None

    def run(self) -> int:
        """Show every message, then give back what was not taken; return how many were shown."""
        self._channel.basic_qos(prefetch_count=MAX_IN_FLIGHT)
        try:
            while self._may_go_on() and self._seen < self._found and self._is_moving():
                self._consume()
        finally:
            if self._channel.is_open and not in_a_hurry():
                self._give_back()
        if self._failure is not None:
            raise self._failure
        self._stop.check(_INTERRUPTED)
        return min(self._seen, self._found)

    def _is_wanted(self) -> bool:
        return self._failure is None and self._stop.number is None

    def _may_go_on(self) -> bool:
        """Tell whether to take more; after a failure too, only to be returned in its turn."""
        if self._is_wanted():
            return True
        self._unwanted_since = self._unwanted_since or time.monotonic()
        return time.monotonic() < self._unwanted_since + FINISH_S

    def _is_moving(self) -> bool:
        idle_s = IDLE_TIMEOUT_S if self._is_wanted() else UNWANTED_IDLE_S
        return time.monotonic() < self._last_at + idle_s

    def _consume(self) -> None:
        """Take messages until as many are held as one consumer may hold."""
        self._held.append((0, 0))
        tag = self._channel.basic_consume(DEAD_LETTER_QUEUE, self._on_message)
        try:
            # After a failure too: what pika has and did not hand over yet it returns out of order.
            while self._held[-1][1] < MAX_IN_FLIGHT and self._seen < self._found and self._is_moving():
                self._channel.connection.process_data_events(time_limit=1)
        finally:
            if self._channel.is_open and not in_a_hurry():
                self._channel.basic_cancel(tag)

    def _on_message(
        self, _: object, method: pika.spec.Basic.Deliver, sent: pika.BasicProperties, body: bytes
    ) -> None:
        before = self._held[-1]
        self._held[-1] = (method.delivery_tag, before[1] + 1)
        self._last_at = time.monotonic()
        self._seen += 1
        if not self._is_wanted() or self._seen > self._found:  # only to be returned
            return
        try:
            if self._look(Browsed(read_letter(body, sent, method.routing_key), body, sent)):
                self._channel.basic_ack(method.delivery_tag)
                self._held[-1] = before
        except BaseException as exc:
            self._failure = exc  # raised by `run`, once everything is returned
        self._last_at = time.monotonic()

    def _give_back(self) -> None:
        """Return what is held in its order, and wait until others can see it."""
        ready = _ready(self._channel)
        returns = [(tag, count) for tag, count in self._held if count]
        for number, (tag, count) in enumerate(returns, start=1):
            self._channel.basic_nack(tag, multiple=True, requeue=True)
            ready += count
            if number % MAX_RETURNS == 0 or number == len(returns):
                self._wait_for(ready)

    def _wait_for(self, ready: int) -> None:
        deadline = time.monotonic() + RETURN_TIMEOUT_S
        while _ready(self._channel) < ready and time.monotonic() < deadline:
            self._channel.connection.sleep(_POLL_S)


def _hint(closed: ChannelClosedByBroker) -> str:
    said = f"({closed.reply_code}) {closed.reply_text}"
    if closed.reply_code == _MISSING:
        return f"{said}; `autolabs topology declare` makes it"
    if closed.reply_code == _REFUSED:
        return f"{said}; the user must have configure on {LOCK_QUEUE} and read on {DEAD_LETTER_QUEUE}"
    return said
