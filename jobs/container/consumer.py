"""Take one message and settle it exactly once, or leave: no message came, or one spare too many waits.

`python -m jobs` calls it. The consumer is cancelled before any work starts. Only after a message that is no
task others may be taken, up to the first that may be one.
"""

from __future__ import annotations

import enum
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pika
from pika.exceptions import AMQPError

from dispatcher.broker.connection import answers_within
from dispatcher.broker.topology import reason_of_copy, worn_out

#: Seconds between looks at the stop signal while waiting; deliveries wake the loop at once.
_TICK_S = 0.5
#: Seconds for the broker to take note; shorter than the grace period after SIGTERM.
SETTLE_TIMEOUT_S = 5.0
#: Seconds within which a message that is already queued arrives; after that this is a spare.
_FIRST_LOOK_S = 0.1
#: Seconds between looks at how many others wait. At random: those that came together must not leave together.
_SURPLUS_LOOK_S = (5.0, 15.0)
#: Messages that are no tasks, and bytes of them, that are held at once.
PILE, PILE_BYTES = 200, 64 * 1024 * 1024


class Settlement(enum.Enum):
    """What became of a message: its outcome is committed, or it was published to another queue.

    After NACK nothing is certain, and another container must see it; after all others it is acknowledged.
    """

    ACK = "ack"
    RETRY = "retry"
    DEAD_LETTER = "dead_letter"
    NACK = "nack"


class ConsumerCancelled(AMQPError):  # type: ignore[misc]  # pika has no types
    """Raised when the broker has cancelled the consumer (basic.cancel): no message comes any more."""

    def __repr__(self) -> str:
        return str(self)


class ChannelLost(Exception):
    """Raised when the message can no longer be settled: the broker will deliver it again."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message as the broker delivered it."""

    body: bytes
    properties: pika.BasicProperties
    routing_key: str
    redelivered: bool
    tag: int

    @classmethod
    def of(cls, method: Any, properties: pika.BasicProperties, body: bytes) -> Delivery:
        """Return a message as pika delivers it."""
        key = method.routing_key
        # pika gives what is not UTF-8 as bytes; without the odd ones it can be published again.
        routing_key = key.decode(errors="ignore") if isinstance(key, bytes) else key
        return cls(body, properties, routing_key, method.redelivered, method.delivery_tag)

    def given_up(self, queue: str) -> str | None:
        """Return why the broker gave the message up, or would have; `queue` is this container's."""
        if worn_out(self.properties.headers):
            return "delivery_limit"
        return reason_of_copy(queue, self.properties.headers)


def announce_claim(port: int) -> socket.socket:
    """Listen on the port until the socket is closed or the process ends: so the Pod is Ready.

    KEDA counts a Job as pending until its Pod is Ready, so a container that starts up, or waits as a spare,
    stands for one waiting message. A tcpSocket probe costs no process in the container.
    """
    # Nobody accepts: the kernel completes a probe's handshake. One probe a second fills this
    # backlog only when activeDeadlineSeconds is nearly over.
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=1024)


class Consumer:
    """A consumer for one message at a time; call its methods from one thread."""

    def __init__(self, connection: pika.BlockingConnection, queue: str) -> None:
        self._connection = connection
        self._queue = queue
        self._channel = connection.channel()
        self._channel.basic_qos(prefetch_count=1)
        #: The broker cancelled the consumer: its queue was deleted, or the queue's node is gone.
        self._cancelled = False
        self._channel.add_on_cancel_callback(self._note_cancel)

    def _note_cancel(self, _frame: Any) -> None:
        self._cancelled = True

    def claim_pile(self, is_task: Callable[[Delivery], bool]) -> deque[Delivery]:
        """Return what is there at once, up to the first that may be a task; only the last one may be.

        KEDA starts a container for each message that it sees in the queue, once a second; it does not see
        those that somebody holds.
        """
        pile: deque[Delivery] = deque()
        held_bytes = 0
        while len(pile) < PILE and held_bytes < PILE_BYTES:
            # Not by a larger prefetch: a second task would have to go back, which costs it a delivery.
            method, properties, body = self._channel.basic_get(self._queue)
            if method is None:
                break
            pile.append(Delivery.of(method, properties, body))
            # One that came back may have killed its container: only it is to lose a delivery by that.
            if is_task(pile[-1]) or pile[-1].redelivered:
                break
            held_bytes += len(body)
        return pile

    def claim(
        self, *, wait_s: float, stop: threading.Event, on_waiting: Callable[[], None], spares: int = 0
    ) -> Delivery | None:
        """Wait for a message and return it, or None after `wait_s` seconds or a stop.

        Raises ConsumerCancelled when the broker ends the consumer: a message would not reach it any more.
        `on_waiting` is called, perhaps more than once, if no message is there at once; not in containers
        beyond `spares` (0: no limit), which get None sooner: after a burst they would take the labs' place.
        """
        claimed: list[Delivery] = []
        self._cancelled = False
        tag = self._channel.basic_consume(
            self._queue, lambda _channel, *message: claimed.append(Delivery.of(*message))
        )
        deadline = time.monotonic() + wait_s
        self._connection.process_data_events(time_limit=_FIRST_LOOK_S)
        if not claimed and not (spares and self._waiting() > spares):
            on_waiting()
        look_at = time.monotonic() + random.uniform(*_SURPLUS_LOOK_S)
        while (
            not claimed
            and not stop.is_set()
            and not self._cancelled
            and (left_s := deadline - time.monotonic()) > 0
        ):
            self._connection.process_data_events(time_limit=min(_TICK_S, left_s))
            if spares and not claimed and time.monotonic() >= look_at:
                if self._waiting() > spares:
                    # What came with the answer is taken: the cancel would return it and cost a delivery.
                    self._connection.process_data_events(time_limit=0)
                    break
                on_waiting()
                look_at = time.monotonic() + random.uniform(*_SURPLUS_LOOK_S)
        if self._cancelled and not claimed:
            raise ConsumerCancelled(f"broker ended the consumer of {self._queue}: was the queue deleted?")
        # Cancelled before the ack, or the broker would push a second message after it.
        # pika returns to the queue what arrives while the cancel is under way.
        self._channel.basic_cancel(tag)
        return claimed[0] if claimed else None

    def _waiting(self) -> int:
        # A container cancels its consumer before it works.
        return int(self._channel.queue_declare(self._queue, passive=True).method.consumer_count)

    def serve_until(self, done: threading.Event, stop: threading.Event) -> None:
        """Answer heartbeats until the work is done or a stop is asked for.

        A connection that breaks meanwhile does not stop the work; settling reports it.
        """
        try:
            while not done.is_set() and not stop.is_set():
                self._connection.process_data_events(time_limit=_TICK_S)
        except AMQPError:
            # Not asked again: pika has closed its loop, which would raise a ValueError.
            while not done.is_set() and not stop.is_set():
                done.wait(_TICK_S)

    def wake(self) -> None:
        """End the current wait of `serve_until`, from any thread."""
        try:
            self._connection.add_callback_threadsafe(lambda: None)
        except AMQPError:
            return  # it is closed, so nobody waits on it

    def acknowledge(self, delivery: Delivery) -> None:
        """Settle the message for good and leave the broker. Raises ChannelLost."""
        self._settle(lambda: self._channel.basic_ack(delivery.tag))

    def put_aside(self, delivery: Delivery) -> None:
        """Settle a message that is no task; more may be claimed. Raises ChannelLost."""
        try:
            # Without an answer of the broker: a lost ack brings it again, to the dead-letter queue as well.
            self._channel.basic_ack(delivery.tag)
        except AMQPError as exc:
            raise ChannelLost(repr(exc)) from exc

    def give_back_all(self) -> None:
        """Return every message that is held to the queue. Raises ChannelLost."""
        self._settle(lambda: self._channel.basic_nack(0, multiple=True, requeue=True))

    def give_back(self, delivery: Delivery, *, failed: bool) -> None:
        """Return the message to its queue. Raises ChannelLost.

        A reject counts towards the queue's delivery limit, a nack does not (RabbitMQ 4.3; before
        that both do), so a drained node costs a task no attempt.
        """
        settle = self._channel.basic_reject if failed else self._channel.basic_nack
        self._settle(lambda: settle(delivery.tag, requeue=True))

    def _settle(self, settle: Callable[[], None]) -> None:
        try:
            # Closing waits for the broker's answer, so the settlement has arrived after it.
            with answers_within(self._connection, SETTLE_TIMEOUT_S):
                settle()
                self._connection.close()
        except AMQPError as exc:
            raise ChannelLost(repr(exc)) from exc
