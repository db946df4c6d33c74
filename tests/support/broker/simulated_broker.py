"""Queues in this process, with the publisher's interface: what is published comes back as deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pika

from dispatcher.broker import delay_ladder, topology
from dispatcher.errors import NotConfirmed, PublishError
from dispatcher.message.envelope import TaskMessage, decode, encode
from dispatcher.tasks import routing_key
from tests.support.broker.routing import queue_for


@dataclass(eq=False)
class Message:
    """A message in a queue, or in the hands of a container."""

    body: bytes
    properties: pika.BasicProperties
    routing_key: str
    queue: str
    redelivered: bool = False
    #: Deliveries that came back, as the queue counts them towards its limit.
    returns: int = 0

    def task(self) -> TaskMessage:
        return decode(self.body, self.properties)


@dataclass
class SimulatedBroker:
    """The task queues, the delay ladder and the dead-letter queue of one history."""

    ready: list[Message] = field(default_factory=list)
    delayed: list[Message] = field(default_factory=list)
    dead: list[Message] = field(default_factory=list)
    #: "lost" or "confirm lost", for the next publish.
    next_fault: str = ""

    # As dispatcher.broker.publisher.Publisher has them.

    def publish_task(self, task: TaskMessage, *, timeout_s: float | None = None) -> None:
        body, properties = encode(task)
        self.publish(topology.TASKS_EXCHANGE, routing_key(task.name), body, properties)

    def publish_tasks(
        self, messages: Sequence[TaskMessage], *, timeout_s: float | None = None
    ) -> list[PublishError | None]:
        return [self._error_of(task) for task in messages]

    def _error_of(self, task: TaskMessage) -> PublishError | None:
        try:
            self.publish_task(task)
        except PublishError as exc:
            return exc
        return None

    def close(self) -> None:
        pass

    def publish(
        self, exchange: str, key: str, body: bytes, properties: dict[str, Any], **_options: object
    ) -> None:
        fault, self.next_fault = self.next_fault, ""
        self._publish(fault, exchange, key, body, properties)

    def request(self, task: TaskMessage) -> None:
        """Publish as a backend does, which has troubles of its own elsewhere."""
        body, properties = encode(task)
        self._publish("", topology.TASKS_EXCHANGE, routing_key(task.name), body, properties)

    def _publish(self, fault: str, exchange: str, key: str, body: bytes, properties: dict[str, Any]) -> None:
        if fault == "lost":
            raise NotConfirmed("", "the broker did not confirm it")
        plain = delay_ladder.plain_routing_key(key)
        message = Message(body, pika.BasicProperties(**properties), key, queue_for(plain))
        kept = {topology.DEAD_LETTER_EXCHANGE: self.dead, delay_ladder.ENTRY_EXCHANGE: self.delayed}
        kept.get(exchange, self.ready).append(message)
        if fault == "confirm lost":
            raise NotConfirmed("", "the broker did not confirm it")

    # What else happens in a broker.

    def return_message(self, message: Message) -> None:
        """Put a message back whose container died or gave it back, or give it up."""
        message.redelivered, message.returns = True, message.returns + 1
        if message.returns <= topology.DELIVERY_LIMIT:
            self.ready.append(message)
            return
        headers = {
            **(message.properties.headers or {}),
            "x-last-death-reason": "delivery_limit",
            "x-last-death-queue": message.queue,
        }
        died = pika.BasicProperties(**{**vars(message.properties), "headers": headers})
        self.dead.append(replace(message, properties=died))
        if message.queue != topology.QUEUE_LOW:
            copied = replace(message, properties=died, queue=topology.QUEUE_LOW, redelivered=False, returns=0)
            self.ready.append(copied)

    def is_copy(self, message: Message) -> bool:
        """Tell whether it is what a container is to fail a lab by, after the broker gave its message up."""
        return message.queue == topology.QUEUE_LOW and message.routing_key != "lab.cleanup"

    def duplicate(self, message: Message) -> None:
        """Publish a waiting message once more, as an outbox does that crashed before its commit."""
        self.ready.append(replace(message, redelivered=False, returns=0))

    def release(self) -> None:
        """Let what waits on the ladder arrive."""
        self.ready += self.delayed
        self.delayed.clear()
