"""Exceptions of the dispatcher, split by what the caller does next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dispatcher.task_status import LabTime, TaskStatus

#: Extra -> the modules that it brings.
_EXTRAS = {"db": {"sqlalchemy", "alembic", "psycopg2"}}


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


class LabUnknown(DispatcherError, LookupError):
    """Raised for a lab that is not in the database."""

    def __init__(self, lab_instance_id: int) -> None:
        super().__init__(f"lab {lab_instance_id} is not in the database")
        self.lab_instance_id = lab_instance_id


class TooManyLabs(DispatcherError):
    """Raised when a student asks for another lab and has as many live ones as allowed; answer 409."""

    def __init__(self, student_id: int, lab_instance_ids: Sequence[int], max_live: int) -> None:
        shown = ", ".join(map(str, lab_instance_ids[:10])) + (", …" if len(lab_instance_ids) > 10 else "")
        super().__init__(
            f"student {student_id} has {len(lab_instance_ids)} live labs ({shown}),"
            f" and {max_live} are allowed: stop one first"
        )
        self.student_id = student_id
        self.lab_instance_ids = list(lab_instance_ids)
        self.max_live = max_live


class NotExtended(DispatcherError):
    """Base of why a lab's end was not moved; `time` is what its row says."""

    def __init__(self, lab_instance_id: int, time: LabTime, problem: str) -> None:
        super().__init__(f"lab {lab_instance_id} is not extended: {problem}")
        self.lab_instance_id = lab_instance_id
        self.time = time


class LabIsOver(NotExtended):
    """Raised when the extension comes too late: the lab is over, or its stop was asked for."""

    def __init__(self, lab_instance_id: int, time: LabTime) -> None:
        what = "its stop was asked for" if time.stopping else f"it is {time.status}"
        super().__init__(lab_instance_id, time, f"{what}, and its end was {_shown(time.ends_at)}")


class ExtensionTooLong(NotExtended):
    """Raised when the lab would end later than it may; `minutes_possible` is what may still be added.

    0: nothing can be, also where the lab is so long past its end that what may be added would not reach now.
    """

    def __init__(self, lab_instance_id: int, time: LabTime, *, helps: bool = True) -> None:
        self.minutes_possible = time.minutes_possible if helps else 0
        until = _shown(time.latest_end_at)
        problem = f"at most {self.minutes_possible} minutes more are possible, until {until}"
        if not helps:
            problem = (
                f"its end was {_shown(time.ends_at)}, and by none of the {time.minutes_possible} minutes that"
                f" it may be extended, until {until}, would it end later than now: start another lab"
            )
        super().__init__(lab_instance_id, time, problem)


class ExtensionTooShort(NotExtended):
    """Raised when the lab would still be past its end; `minutes_needed` are the fewest that help."""

    def __init__(self, lab_instance_id: int, time: LabTime, minutes_needed: int) -> None:
        self.minutes_needed = minutes_needed
        problem = f"its end was {_shown(time.ends_at)}, so at least {minutes_needed} minutes are needed"
        super().__init__(lab_instance_id, time, problem)


class EndHasMoved(NotExtended):
    """Raised when the lab ends at another time than the caller believes; `time.ends_at` is when."""

    def __init__(self, lab_instance_id: int, time: LabTime) -> None:
        super().__init__(lab_instance_id, time, f"its end has been moved, to {_shown(time.ends_at)}")


def _shown(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat(timespec="seconds")


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


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Raise MissingExtra if the block imports what the extra brings and is not installed."""
    try:
        yield
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in _EXTRAS[name]:
            raise
        raise MissingExtra(
            f"{exc.name} is not installed; it comes with: pip install 'autolabs-jobs[{name}]'"
        ) from exc
