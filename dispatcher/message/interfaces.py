"""What a Dispatcher works with; dispatcher.testing has both in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dispatcher.errors import PublishError
from dispatcher.message.envelope import TaskMessage
from dispatcher.task_status import TaskStatus


class TaskPublisher(Protocol):
    """What takes the messages; dispatcher.broker.publisher.Publisher is one."""

    def publish_task(self, task: TaskMessage, *, timeout_s: float | None = None) -> None:
        """Publish one task. Raises PublishError."""

    def publish_tasks(
        self, messages: Sequence[TaskMessage], *, timeout_s: float | None = None
    ) -> list[PublishError | None]:
        """Publish many; one entry per task, None for a confirmed one."""

    def close(self) -> None:
        """Close what was opened."""


class Results(Protocol):
    """Where the states of tasks are read; dispatcher.results.ResultStore is one."""

    def status(self, task_id: str) -> TaskStatus:
        """Return what is known now."""

    def wait(self, task_id: str, timeout_s: float) -> TaskStatus:
        """Return the status once the task is over. Raises TaskTimeout."""

    def cancel(self, task_id: str) -> TaskStatus:
        """Ask that the task is not begun."""

    def close(self) -> None:
        """Close what was opened."""
