"""Publish with confirms and `mandatory`: a return without error means that a queue holds the task.

A lost connection is retried within the timeout under the same task id, so a task may be
queued twice (a confirm can be lost after the broker took the message); containers are idempotent.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker, NackError, UnroutableError

from dispatcher import message, tasks, topology
from dispatcher.connection import answers_within, connect
from dispatcher.errors import NotConfirmed, PublishError, Unroutable
from dispatcher.settings import BrokerSettings

if TYPE_CHECKING:
    from pika.adapters.blocking_connection import BlockingChannel

logger = logging.getLogger(__name__)

FIRST_RETRY_DELAY_S = 0.1
MAX_RETRY_DELAY_S = 2.0
#: Seconds for a polite goodbye.
CLOSE_TIMEOUT_S = 2.0


class Publisher:
    """Publish over one connection per process; safe to share between threads and across a fork."""

    def __init__(self, settings: BrokerSettings, *, name: str = "autolabs-dispatcher") -> None:
        self._settings = settings
        self._name = name
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._connection: pika.BlockingConnection | None = None
        self._channel: BlockingChannel | None = None

    def publish_task(self, task: message.TaskMessage) -> None:
        """Publish a task to the queue of its kind; errors as for `publish`."""
        body, properties = message.encode(task)
        self.publish(topology.TASKS_EXCHANGE, tasks.ROUTING_KEYS[task.name], body, properties)

    def publish_tasks(
        self, messages: Sequence[message.TaskMessage], *, timeout_s: float | None = None
    ) -> list[PublishError | None]:
        """Publish many tasks and return, in their order, None for a confirmed one or what went wrong.

        `timeout_s` bounds the whole call, in seconds. Raises nothing of the broker.
        """
        timeout_s = self._settings.publish_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        errors: list[PublishError | None] = []
        for task in messages:
            body, properties = message.encode(task)
            routing_key = tasks.ROUTING_KEYS[task.name]
            left_s = max(0.01, deadline - time.monotonic())
            try:
                self.publish(topology.TASKS_EXCHANGE, routing_key, body, properties, timeout_s=left_s)
                errors.append(None)
            except PublishError as exc:
                errors.append(exc)
        return errors

    def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: dict[str, Any],
        *,
        timeout_s: float | None = None,
    ) -> None:
        """Publish one message and wait for the broker's confirm.

        Args:
            exchange: the exchange; an empty name publishes straight to the queue of the routing key.
            routing_key: the routing key.
            body: the encoded message.
            properties: keyword arguments of pika.BasicProperties; correlation_id is the task id.
            timeout_s: seconds for all attempts; by default the setting's publish_timeout_s.

        Raises:
            Unroutable: no queue is bound for the routing key, the exchange is missing, or writing to it
                is not allowed; nothing is queued.
            NotConfirmed: no confirm within the timeout; the cause is chained.
        """
        if self._pid != os.getpid():
            self._forget_after_fork()
        task_id = str(properties.get("correlation_id"))
        timeout_s = self._settings.publish_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        delay_s = FIRST_RETRY_DELAY_S
        if not self._lock.acquire(timeout=timeout_s):
            raise NotConfirmed(task_id, f"task {task_id} was not sent within {timeout_s:g} s: others wait")
        try:
            while True:
                try:
                    self._attempt(exchange, routing_key, body, properties, deadline)
                    return
                except (AMQPError, OSError) as exc:
                    if refusal := _refusal(exc, exchange, routing_key):
                        raise Unroutable(task_id, f"task {task_id} {refusal}") from exc
                    if not isinstance(exc, NackError):
                        self._discard()
                    delay_s = min(2 * delay_s, MAX_RETRY_DELAY_S) * random.uniform(0.5, 1.0)
                    if time.monotonic() + delay_s >= deadline:
                        raise NotConfirmed(
                            task_id,
                            f"task {task_id} was not confirmed by the broker within {timeout_s:g} s"
                            f" (last: {exc!r})",
                        ) from exc
                    logger.warning("publish of task %s failed, trying again: %r", task_id, exc)
                    time.sleep(delay_s)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the connection; a later publish opens a new one."""
        with self._lock:
            self._discard()

    def _attempt(
        self, exchange: str, routing_key: str, body: bytes, properties: dict[str, Any], deadline: float
    ) -> None:
        channel = self._open_channel(deadline)
        # Half of the time: a kept connection that the network forgot must leave some for a new one.
        with answers_within(channel.connection, (deadline - time.monotonic()) / 2):
            channel.basic_publish(
                exchange, routing_key, body, pika.BasicProperties(**properties), mandatory=True
            )

    def _open_channel(self, deadline: float) -> BlockingChannel:
        if self._channel is None or not self._channel.is_open:
            self._discard()
            left_s = max(0.1, deadline - time.monotonic())
            self._connection = connect(self._settings, name=self._name, timeout_s=left_s)
            with answers_within(self._connection, left_s):
                self._channel = self._connection.channel()
                self._channel.confirm_delivery()
        return self._channel

    def _discard(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None and connection.is_open:
            try:
                with answers_within(connection, CLOSE_TIMEOUT_S):
                    connection.close()
            except (AMQPError, OSError) as exc:
                logger.debug("connection was already gone: %r", exc)

    def _forget_after_fork(self) -> None:
        # The socket belongs to the parent: closing it here would end the parent's connection.
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._connection = self._channel = None


def _refusal(error: Exception, exchange: str, routing_key: str) -> str | None:
    """Say why the broker will not take the message however often it is sent, or None."""
    if isinstance(error, UnroutableError):
        return (
            "was returned by the broker: no queue is bound to exchange"
            f" {exchange!r} with routing key {routing_key!r}"
        )
    # 403 access refused, 404 no such exchange
    if isinstance(error, ChannelClosedByBroker) and error.reply_code in (403, 404):
        return f"was refused by the broker: {error.reply_text}"
    return None
