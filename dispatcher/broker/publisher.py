"""Publish with confirms and `mandatory`: a return without error means that a queue holds the task.

A lost connection is retried within the timeout under the same task id, so a task may be
queued twice (a confirm can be lost after the broker took the message); containers are idempotent.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from dispatcher.broker.amqp import ClosedByBroker, PublishLink
from dispatcher.broker.batch import Batch
from dispatcher.broker.connection import url_parameters
from dispatcher.broker.outgoing import Outgoing, make_outgoing
from dispatcher.broker.transport import LinkError
from dispatcher.errors import PublishError
from dispatcher.forks import call_in_forked_children
from dispatcher.message import envelope
from dispatcher.settings import BrokerSettings

logger = logging.getLogger(__name__)

FIRST_RETRY_DELAY_S = 0.1
MAX_RETRY_DELAY_S = 2.0
#: A new attempt begins only if at least this much of the time is left, in seconds.
LAST_ATTEMPT_S = 0.2
NACKED = "the broker refuses it (basic.nack): its queue is full or not available"
#: Longest timeout in seconds, a day: the wait for a lock is bounded, and float("inf") is not.
MAX_TIMEOUT_S = 86_400.0
#: Seconds that the broker has to answer a goodbye.
CLOSE_TIMEOUT_S = 2.0


class Publisher:
    """Publish over one connection per process; safe to share between threads and across a fork."""

    def __init__(self, settings: BrokerSettings, *, name: str = "autolabs-dispatcher") -> None:
        self._settings = settings
        self._name = name
        # Raises InvalidSettings here rather than at the first publish.
        url_parameters(settings)
        # An RLock knows its owner, which `_publish_all` needs.
        self._lock = threading.RLock()
        self._busy = False
        self._link: PublishLink | None = None
        self._keep_alive: _KeepAlive | None = None
        call_in_forked_children(self._forget_after_fork)

    def publish_task(self, task: envelope.TaskMessage, *, timeout_s: float | None = None) -> None:
        """Publish a task to the queue of its kind, with the errors of `publish`."""
        self._publish_all([task.id], lambda _: make_outgoing(task), timeout_s, raise_first=True)

    def publish_tasks(
        self, messages: Sequence[envelope.TaskMessage], *, timeout_s: float | None = None
    ) -> list[PublishError | None]:
        """Publish many tasks and return, in their order, None for a confirmed one or what went wrong.

        Up to batch.WINDOW messages are on their way before the first confirm is waited for. The ids must
        differ. `timeout_s` bounds the whole call, in seconds; nothing of the broker is raised.
        """
        ids = [task.id for task in messages]
        return self._publish_all(ids, lambda index: make_outgoing(messages[index]), timeout_s)

    def publish_all(
        self, messages: Sequence[Outgoing], *, timeout_s: float | None = None
    ) -> list[PublishError | None]:
        """Publish many messages as `publish_tasks` does; a return by the broker is for all of that id."""
        ids = [str(out.properties.get("correlation_id")) for out in messages]
        return self._publish_all(ids, lambda index: messages[index], timeout_s)

    def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: dict[str, Any],
        *,
        timeout_s: float | None = None,
        mandatory: bool = True,
    ) -> None:
        """Publish one message and wait for the broker's confirm.

        An exchange without a name leads straight to the queue of the routing key. `properties` are keyword
        arguments of pika.BasicProperties; correlation_id is the task id. `timeout_s` bounds all attempts.
        Without `mandatory` no queue has to be bound; the message is confirmed all the same.

        Raises:
            Unroutable: no queue is bound for the routing key, the exchange is missing, writing to it is
                not allowed, or the login is refused; nothing is queued.
            Unencodable: AMQP cannot express the properties; nothing is sent.
            NotConfirmed: no confirm within the timeout; the cause is chained.
        """
        outgoing = Outgoing(exchange, routing_key, body, properties, mandatory)
        task_id = str(properties.get("correlation_id"))
        self._publish_all([task_id], lambda _: outgoing, timeout_s, raise_first=True)

    def keep_alive(self) -> None:
        """Answer the broker's heartbeats if nobody publishes just now; called by a thread of its own."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._link is not None:
                self._link.poll()
        except LinkError as exc:
            logger.info("idle connection to the broker is gone, the next publish opens another: %s", exc)
            self._discard()
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the connection; a later publish opens a new one."""
        with self._lock:
            link, self._link = self._link, None
            keep_alive, self._keep_alive = self._keep_alive, None
            if link is not None:
                link.close(time.monotonic() + CLOSE_TIMEOUT_S)
        if keep_alive is not None:
            keep_alive.stop()

    def _publish_all(
        self,
        ids: Sequence[str],
        outgoing: Callable[[int], Outgoing],
        timeout_s: float | None,
        *,
        raise_first: bool = False,
    ) -> list[PublishError | None]:
        timeout_s = self._settings.publish_timeout_s if timeout_s is None else max(0.0, timeout_s)
        timeout_s = min(timeout_s, MAX_TIMEOUT_S)
        batch = Batch(ids, outgoing)
        deadline = time.monotonic() + timeout_s
        try:
            if not self._lock.acquire(timeout=timeout_s):
                batch.leave(f"was not sent within {timeout_s:g} s: other threads are publishing")
            elif self._busy:
                batch.leave("was not sent: a signal handler publishes while its thread does")
            else:
                self._busy = True
                try:
                    self._deliver(batch, deadline, timeout_s)
                finally:
                    self._busy = False
        finally:
            # Whatever a signal handler raised, and between which two lines: what this thread holds goes.
            # Not by suppress(), which is Python code that an exception could interrupt as well.
            try:  # noqa: SIM105
                self._lock.release()
            except RuntimeError:
                pass  # it never was this thread's
        if raise_first and batch.errors[0] is not None:
            raise batch.errors[0]
        return batch.errors

    def _deliver(self, batch: Batch, deadline: float, timeout_s: float) -> None:
        delay_s = FIRST_RETRY_DELAY_S
        refused = ""
        if time.monotonic() >= deadline:
            batch.leave(f"was not sent within {timeout_s:g} s")
        while batch.waiting:
            kept = self._link is not None
            cause: Exception | None = None
            try:
                link = self._open_link(deadline)
                batch.run(link, deadline)
                reason, refused = NACKED, f"{NACKED}; then: "
            except LinkError as exc:
                # A last try that was too short says less than the refusals before it.
                cause, reason = exc, f"{refused}{exc}"
                if self._link is not None and self._link.blocked:
                    reason += f"; the broker takes no messages: {self._link.blocked}"
                self._discard()
                if isinstance(exc, ClosedByBroker):
                    batch.refuse(exc)
            except BaseException:
                # Such as a web server's time limit: half a message may be sent, confirms may be due.
                self._discard()
                raise
            if not batch.waiting:
                return
            # A connection that went stale while idle says nothing of the broker: try at once.
            wait_s = 0.0 if kept and cause else delay_s * random.uniform(0.5, 1.0)
            left_s = deadline - time.monotonic()
            if left_s < LAST_ATTEMPT_S:
                batch.give_up(
                    f"was not confirmed by the broker within {timeout_s:g} s (last: {reason})", cause
                )
                return
            logger.warning("publishing again what is not confirmed (%d): %s", len(batch.waiting), reason)
            time.sleep(min(wait_s, left_s / 2))
            if wait_s:
                delay_s = min(2 * delay_s, MAX_RETRY_DELAY_S)

    def _open_link(self, deadline: float) -> PublishLink:
        if self._link is None:
            self._link = PublishLink(self._settings, name=self._name, deadline=deadline)
            if self._keep_alive is None and self._link.heartbeat_s:
                self._keep_alive = _KeepAlive(self, interval_s=self._link.heartbeat_s / 3)
        return self._link

    def _discard(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.abandon()

    def _forget_after_fork(self) -> None:
        # Only this process's copy of the socket is closed; the parent goes on with the connection.
        self._lock = threading.RLock()
        self._busy = False
        self._keep_alive = None
        self._discard()


class _KeepAlive:
    """Call `owner.keep_alive()` every `interval_s` seconds until stopped or the owner is gone.

    An idle connection lives so, as in a web worker that publishes once an hour.
    """

    def __init__(self, owner: Publisher, *, interval_s: float) -> None:
        # A strong reference would keep a forgotten publisher, and its connection, for ever.
        self._owner = weakref.ref(owner)
        self._interval_s = interval_s
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="autolabs-keepalive", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            owner = self._owner()
            if owner is None:
                return
            owner.keep_alive()
            del owner
