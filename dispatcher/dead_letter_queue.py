"""Look at the dead-letter queue message by message; what is not taken stays, in its order.

One process at a time looks: messages that one holds are invisible to another, which would take them for
gone. Whatever ends the process, the broker has every message again that was not taken.

A consumer rather than basic.get, which makes the broker return messages in an order of its own
(RabbitMQ 4.0), and takes fifteen times as long. No more than a few bodies are in memory: callbacks get
them as they are read from the socket, and the broker waits for the reader.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelClosedByBroker

from dispatcher.connection import connect
from dispatcher.dead_letters import DeadLetter, read_letter
from dispatcher.errors import DispatcherError
from dispatcher.pika_tables import tolerant_tables
from dispatcher.settings import BrokerSettings
from dispatcher.topology import DEAD_LETTER_QUEUE

#: An exclusive queue: the broker takes it away with the connection of whoever looks.
LOCK_QUEUE = "autolabs.dlq.lock"
#: Seconds to wait for another process that looks; ten thousand messages take half a second.
LOCK_TIMEOUT_S = 60.0
#: Seconds without the next message: somebody purged the queue.
IDLE_TIMEOUT_S = 20.0
#: Seconds for the broker to count as ready what was returned.
_RETURN_TIMEOUT_S = 10.0
_POLL_S = 0.05
_LOCKED, _REFUSED, _MISSING = 405, 403, 404
#: What a prefetch can say; 0 is any number.
_MAX_PREFETCH = 65_535


@dataclass(frozen=True, slots=True)
class Found:
    """One message under the eyes of `look_through`."""

    letter: DeadLetter
    body: bytes
    properties: pika.BasicProperties


def look_through(
    settings: BrokerSettings, look: Callable[[Found], bool], *, lock_timeout_s: float = LOCK_TIMEOUT_S
) -> int:
    """Show `look` every message that is there at the beginning; return how many that were.

    A message is taken out of the queue when `look` returns True, before the next one is shown. All
    others are returned in their order, also when `look` raises, and are ready again on return.

    Raises:
        DispatcherError: the broker is not reachable, lacks the queue, refuses or breaks off; somebody
            else looked for longer than `lock_timeout_s` seconds.
    """
    try:
        with tolerant_tables(), _connection(settings) as connection:
            channel = _lock(connection, time.monotonic() + lock_timeout_s)
            found = _ready(channel)
            return _show(channel, found, look) if found else 0
    except ChannelClosedByBroker as exc:
        raise DispatcherError(f"the dead-letter queue cannot be read: {_hint(exc)}") from exc
    except KeyboardInterrupt as exc:
        raise DispatcherError("interrupted; what was not taken is back in the dead-letter queue") from exc
    except AMQPError as exc:
        raise DispatcherError(
            f"the connection to the dead-letter queue failed: {exc!r}. What was not taken is back in it"
        ) from exc


@contextmanager
def _connection(settings: BrokerSettings) -> Iterator[pika.BlockingConnection]:
    connection = connect(settings, name="autolabs-dlq")
    try:
        yield connection
    finally:
        if connection.is_open:
            connection.close()


def _lock(connection: pika.BlockingConnection, deadline: float) -> BlockingChannel:
    while True:
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
        connection.sleep(_POLL_S)


def _ready(channel: BlockingChannel) -> int:
    return int(channel.queue_declare(DEAD_LETTER_QUEUE, passive=True).method.message_count)


def _show(channel: BlockingChannel, found: int, look: Callable[[Found], bool]) -> int:
    shown = taken = 0
    last_at = time.monotonic()

    def on_message(
        _: object, method: pika.spec.Basic.Deliver, sent: pika.BasicProperties, body: bytes
    ) -> None:
        nonlocal shown, taken, last_at
        if shown >= found:  # it came after the beginning
            return
        shown += 1
        if look(Found(read_letter(body, sent, method.routing_key), body, sent)):
            channel.basic_ack(method.delivery_tag)
            taken += 1
        last_at = time.monotonic()

    channel.basic_qos(prefetch_count=found if found <= _MAX_PREFETCH else 0)
    tag = channel.basic_consume(DEAD_LETTER_QUEUE, on_message)
    try:
        while shown < found and time.monotonic() < last_at + IDLE_TIMEOUT_S:
            channel.connection.process_data_events(time_limit=1)
    finally:
        if channel.is_open:
            _give_back(channel, tag, found - taken)
    return shown


def _give_back(channel: BlockingChannel, tag: str, count: int) -> None:
    """Return what was not taken, and wait until others can see it."""
    channel.basic_cancel(tag)
    channel.basic_nack(0, multiple=True, requeue=True)
    deadline = time.monotonic() + _RETURN_TIMEOUT_S
    while _ready(channel) < count and time.monotonic() < deadline:
        channel.connection.sleep(_POLL_S)


def _hint(closed: ChannelClosedByBroker) -> str:
    said = f"({closed.reply_code}) {closed.reply_text}"
    if closed.reply_code == _MISSING:
        return f"{said}; `autolabs topology declare` makes it"
    if closed.reply_code == _REFUSED:
        return f"{said}; the user must have configure on {LOCK_QUEUE} and read on {DEAD_LETTER_QUEUE}"
    return said
