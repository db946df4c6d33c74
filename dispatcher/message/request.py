"""Make the message of what a backend asks for, and say what a Dispatcher needs to send it.

The client makes requests, the outbox takes them; dispatcher.testing has both interfaces in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Protocol

from dispatcher import tasks
from dispatcher.errors import InvalidTask, PublishError
from dispatcher.message import envelope
from dispatcher.task_status import TaskStatus


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """A task to publish, alone, among many, or through the outbox."""

    payload: tasks.Payload
    #: 1 to 255 printable bytes; made up if left out. Publishing twice under one id is safe.
    task_id: str | None = None
    #: Seconds from now before which the task is not begun; not together with `eta`.
    countdown: float | None = None
    #: Aware time before which the task is not begun.
    eta: datetime | None = None
    #: Seconds from now, or an aware time, from which on the task is not begun any more.
    expires: float | datetime | None = None

    def to_message(self) -> envelope.TaskMessage:
        """Return the message to publish; relative times count from now. Raises InvalidTask."""
        if not isinstance(self.payload, tasks.Payload):
            allowed = ", ".join(sorted(kind.__name__ for kind in tasks.PAYLOADS.values()))
            raise InvalidTask(
                "payload", f"{type(self.payload).__name__} is not allowed; it must be {allowed}"
            )
        if self.countdown is not None and self.eta is not None:
            raise InvalidTask("countdown", "is given together with eta; only one of them is allowed")
        eta = _moment("countdown", self.countdown) if self.eta is None else _moment("eta", self.eta)
        expires = _moment("expires", self.expires)
        if expires is not None and expires <= (eta or datetime.now(timezone.utc)):
            raise InvalidTask("expires", f"{self.expires} is over before the task may begin")
        return envelope.TaskMessage(
            name=self.payload.task_name,
            id=self._checked_id(),
            kwargs=tasks.payload_kwargs(self.payload),
            eta=eta,
            expires=expires,
        )

    def _checked_id(self) -> str:
        if self.task_id is None:
            return envelope.new_task_id()
        if not (self.task_id and envelope.is_short_text(self.task_id)):
            raise InvalidTask("task_id", f"{self.task_id!r:.80} must be a printable text of 1 to 255 bytes")
        return self.task_id


def _moment(field: str, value: float | datetime | None) -> datetime | None:
    if value is None:
        return None
    now = datetime.now(timezone.utc)
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise InvalidTask(field, f"{value.isoformat()} has no time zone; it must be an aware datetime")
        delay_s = (value - now).total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        delay_s = float(value)
        if delay_s < 0:
            raise InvalidTask(field, f"{value!r:.80} is not allowed; it must be 0 seconds or more")
    else:
        raise InvalidTask(field, f"{value!r:.80} is not allowed; it must be seconds or an aware datetime")
    if not math.isfinite(delay_s) or delay_s > tasks.MAX_DELAY_S:
        raise InvalidTask(
            field, f"{value!r:.80} is too far away; at most {tasks.MAX_DELAY_S} seconds are allowed"
        )
    return value if isinstance(value, datetime) else now + timedelta(seconds=delay_s)


class TaskPublisher(Protocol):
    """Takes the messages; dispatcher.broker.publisher.Publisher is one. What fails raises PublishError."""

    def publish_task(self, task: envelope.TaskMessage, *, timeout_s: float | None = None) -> None: ...

    def publish_tasks(
        self, messages: Sequence[envelope.TaskMessage], *, timeout_s: float | None = None
    ) -> list[PublishError | None]:
        """Publish many; one entry per task, None for a confirmed one."""

    def close(self) -> None: ...


class Results(Protocol):
    """Reads the states of tasks; dispatcher.results.ResultStore is one, and says what is raised."""

    def status(self, task_id: str) -> TaskStatus: ...

    def wait(self, task_id: str, timeout_s: float) -> TaskStatus: ...

    def cancel(self, task_id: str) -> TaskStatus: ...

    def close(self) -> None: ...
