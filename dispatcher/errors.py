"""Exceptions of the dispatcher, split by what the caller does next."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dispatcher.task_status import TaskStatus


class DispatcherError(Exception):
    """Base of everything the dispatcher raises on purpose."""


class InvalidTask(DispatcherError, ValueError):
    """Raised before publishing when a task name or an argument is not acceptable.

    `field` names the offending argument (dotted for nested ones, such as `resources.cpu`).
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class MalformedMessage(DispatcherError):
    """Raised when a delivery is not a Celery task message that can be run; never worth a retry."""


class InvalidSettings(DispatcherError, ValueError):
    """Raised once with every missing or invalid setting listed in `problems`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("invalid settings:\n  " + "\n  ".join(problems))
        self.problems = problems


class MissingExtra(DispatcherError, ImportError):
    """Raised when a function is used whose libraries are not installed; the text names the extra."""


class PublishError(DispatcherError):
    """Base of failed publishes; the task was not confirmed by the broker."""

    def __init__(self, task_id: str, message: str) -> None:
        super().__init__(message)
        self.task_id = task_id


class NotConfirmed(PublishError):
    """Raised when no confirm arrived in time: the task may or may not be queued.

    Publishing again under the same task id is safe.
    """


class NotSent(NotConfirmed):
    """Raised when the time was over before anything was sent: other threads were publishing."""


class Unencodable(PublishError, ValueError):
    """Raised when JSON or AMQP cannot express the message; nothing was sent."""


class Unroutable(PublishError):
    """Raised when the broker has no queue for the message, or refuses it: not queued."""


class TaskTimeout(DispatcherError, TimeoutError):
    """Raised when a task is not over in time; `status` is what was seen last."""

    def __init__(self, status: TaskStatus, waited_s: float) -> None:
        super().__init__(f"task {status.task_id} is {status.state.value} after {waited_s:g} s")
        self.status = status


class TaskRevoked(DispatcherError):
    """Raised by `get()` for a task that was cancelled, or expired, before it began."""


class TaskFailed(DispatcherError):
    """Raised by Celery's `AsyncResult.get()` for a task of ours that failed.

    `category` says who must act, `message` is a sentence for the student and the teacher.
    """

    def __init__(self, category: str, message: str) -> None:
        super().__init__(category, message)  # both, because Celery and pickle build it again from args
        self.category = category
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} [{self.category}]"
