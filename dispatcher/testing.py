"""Give a backend's own unit tests a Dispatcher that keeps everything in memory.

It checks, encodes and reports as the real one does (both pass the same tests), and needs no server:

    dispatcher = InMemoryDispatcher()
    start_lab(dispatcher, lab_instance_id=7)
    assert [task.name for task in dispatcher.sent] == ["celery_workers.create_lab_pod"]
    dispatcher.finish(dispatcher.sent[0].id, result={"status": "RUNNING"})
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from dispatcher.broker.amqp_properties import encode_properties
from dispatcher.broker.outgoing import make_outgoing
from dispatcher.client import Dispatcher
from dispatcher.errors import (
    DispatcherError,
    MalformedMessage,
    NotConfirmed,
    PublishError,
    TaskTimeout,
    Unencodable,
    Unroutable,
    needs_extra,
)
from dispatcher.message import envelope
from dispatcher.settings import BrokerSettings
from dispatcher.task_status import TaskState, TaskStatus

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from dispatcher.outbox.relay import RelayReport

__all__ = ["InMemoryDispatcher", "InMemoryPublisher", "InMemoryResults"]


class InMemoryPublisher:
    """Keep what is published, in order, as a container would read it.

    What a container would put into the dead-letter queue unread is kept as it was given.
    """

    def __init__(self) -> None:
        self.sent: list[envelope.TaskMessage] = []
        #: Set to NotConfirmed or Unroutable, and every publish fails so until it is None again.
        self.fail_with: type[NotConfirmed] | type[Unroutable] | None = None
        self._lock = threading.Lock()

    def publish_task(self, task: envelope.TaskMessage, *, timeout_s: float | None = None) -> None:
        error = self._publish(task)
        if error is not None:
            raise error

    def publish_tasks(
        self, messages: Sequence[envelope.TaskMessage], *, timeout_s: float | None = None
    ) -> list[PublishError | None]:
        return [self._publish(task) for task in messages]

    def close(self) -> None:
        """Do nothing; what was sent stays."""

    def _publish(self, task: envelope.TaskMessage) -> PublishError | None:
        try:
            out = make_outgoing(task)
            encode_properties(out.properties)
        except PublishError as exc:
            return exc
        except ValueError as exc:
            return Unencodable(task.id, f"task {task.id}: {exc}")
        if self.fail_with is not None:
            return self.fail_with(task.id, f"task {task.id} was not published: the test says so")
        try:
            received = envelope.decode(out.body, SimpleNamespace(**{"reply_to": None, **out.properties}))
        except MalformedMessage:
            # The broker takes it as well; a container puts it into the dead-letter queue.
            received = task
        with self._lock:
            self.sent.append(received)
        return None


class InMemoryResults:
    """States of tasks, which a test sets in place of containers."""

    def __init__(self) -> None:
        self._states: dict[str, TaskStatus] = {}
        self._changed = threading.Condition()

    def set(self, status: TaskStatus) -> None:
        with self._changed:
            self._states[status.task_id] = status
            self._changed.notify_all()

    def status(self, task_id: str) -> TaskStatus:
        return self._states.get(task_id, TaskStatus(task_id=task_id, state=TaskState.PENDING))

    def wait(self, task_id: str, timeout_s: float) -> TaskStatus:
        with self._changed:
            if not self._changed.wait_for(lambda: self.status(task_id).ready, timeout_s):
                raise TaskTimeout(self.status(task_id), timeout_s)
            return self.status(task_id)

    def cancel(self, task_id: str) -> TaskStatus:
        """Make a task REVOKED that nobody has begun, or that waits for another attempt."""
        with self._changed:
            if self.status(task_id).state in (TaskState.PENDING, TaskState.RETRY):
                self.set(TaskStatus(task_id=task_id, state=TaskState.REVOKED))
            return self.status(task_id)

    def close(self) -> None:
        """Do nothing; the states stay."""


class InMemoryDispatcher(Dispatcher):
    """A Dispatcher without broker and ledger; `relay_outbox` works if an Engine is given."""

    def __init__(self, *, database: str | Engine | None = None) -> None:
        """Take the backend's test database, if its code uses the outbox."""
        super().__init__(database=database, settings=BrokerSettings("amqp://in.memory"))
        self._publisher = self.publisher = InMemoryPublisher()
        self._results = self._in_memory_results = InMemoryResults()

    @property
    def sent(self) -> list[envelope.TaskMessage]:
        return self.publisher.sent

    @property
    def results(self) -> InMemoryResults:
        return self._in_memory_results

    def relay_outbox(self, *, timeout: float = 10.0) -> RelayReport:
        """Publish what the outbox holds; after a failure the next call tries at once.

        Without a `database` there is no outbox: never that of DATABASE_URL, whose tasks would be lost.
        """
        with needs_extra("db"):
            from dispatcher.outbox.relay import RelayReport
            from dispatcher.outbox.relay_turns import relay_after_commit

        if self._database is None:
            return RelayReport()
        return relay_after_commit(self._open_engine(), self._publisher, timeout_s=timeout, pause_s=0.0)

    def _open_engine(self) -> Engine:
        if self._database is None:
            raise DispatcherError(
                "InMemoryDispatcher needs a database for that: InMemoryDispatcher(database=...)"
            )
        return super()._open_engine()

    def start(self, task_id: str) -> None:
        """Let a container have begun the task: STARTED."""
        self._put(task_id, TaskState.STARTED, "started", started_at=datetime.now(timezone.utc))

    def finish(self, task_id: str, *, result: Mapping[str, Any] | None = None) -> None:
        """Let the task have ended well: SUCCESS with this result."""
        now = datetime.now(timezone.utc)
        self._put(task_id, TaskState.SUCCESS, "succeeded", finished_at=now, result=dict(result or {}))

    def fail(self, task_id: str, *, category: str, message: str) -> None:
        """Let the task have failed for good: FAILURE, with a category and a sentence."""
        said = {"error_category": category, "error_message": message}
        self._put(task_id, TaskState.FAILURE, "failed", finished_at=datetime.now(timezone.utc), **said)

    def _put(self, task_id: str, state: TaskState, outcome: str, **known: Any) -> None:
        self.results.set(TaskStatus(task_id=str(task_id), state=state, outcome=outcome, **known))
