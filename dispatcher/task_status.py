"""States of tasks by Celery's names, times of labs, and the lock under which a task is begun or cancelled.

Of a task's runs in the ledger the first success decides; without one the first end of another kind,
which a later run does not undo (a duplicate finds nothing to do, for a lab that FAILED as well);
without any end the newest run.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import Any


class TaskState(str, enum.Enum):
    """Where a task is; the names and meanings are those of celery.states."""

    #: Nobody has begun it: it waits, or no such task was ever sent.
    PENDING = "PENDING"
    #: A container works on it.
    STARTED = "STARTED"
    #: An attempt failed; another one comes after a delay.
    RETRY = "RETRY"
    #: It was performed, or there was nothing to do.
    SUCCESS = "SUCCESS"
    #: It failed for good; error_message says why.
    FAILURE = "FAILURE"
    #: It was cancelled or had expired before it began, and will not be begun.
    REVOKED = "REVOKED"

    def __str__(self) -> str:
        return self.value

    @property
    def ready(self) -> bool:
        """True when the state will not change any more; but a task sent again may still succeed."""
        return self in (TaskState.SUCCESS, TaskState.FAILURE, TaskState.REVOKED)


#: Outcome in the ledger (dispatcher.models.Outcome, which needs SQLAlchemy) -> state.
STATE_OF_OUTCOME = {
    "started": TaskState.STARTED,
    "succeeded": TaskState.SUCCESS,
    "noop": TaskState.SUCCESS,
    "failed": TaskState.FAILURE,
    "dead_lettered": TaskState.FAILURE,
    "retried": TaskState.RETRY,
    "revoked": TaskState.REVOKED,
}


def state_of(outcome: str | None, *, cancelled: bool) -> TaskState:
    """Return the state of a task by the outcome of its deciding run and the cancellation flag."""
    if cancelled and outcome in (None, "retried"):
        return TaskState.REVOKED
    return TaskState.PENDING if outcome is None else STATE_OF_OUTCOME[outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStatus:
    """A task as the ledger knows it; all but id and state are None before its first run."""

    task_id: str
    state: TaskState
    task_name: str | None = None
    lab_instance_id: int | None = None
    #: 1 for the first; a retry has the next number, a redelivery the same.
    attempt: int | None = None
    #: How the ledger puts it, such as `noop` for a SUCCESS that had nothing to do.
    outcome: str | None = None
    error_category: str | None = None
    #: A sentence for people: what happened and who must act.
    error_message: str | None = None
    #: The publisher's clock gave this time.
    published_at: datetime | None = None
    #: When the deciding run took the task, by the database's clock.
    started_at: datetime | None = None
    finished_at: datetime | None = None
    #: What a SUCCESS gives: for a create the lab's id, status, Pod name and URL.
    result: dict[str, Any] | None = None

    @property
    def ready(self) -> bool:
        return self.state.ready


@dataclass(frozen=True, slots=True)
class LabTime:
    """How long a lab goes on; times are aware, and by the database's clock."""

    lab_instance_id: int
    #: As lab_instances.status.
    status: str
    #: True: its stop was asked for.
    stopping: bool
    ends_at: datetime
    #: No extension goes further.
    latest_end_at: datetime
    #: Until `ends_at`, rounded down; 0 once it has passed.
    minutes_left: int
    #: That an extension may still add; 0 for a lab that is over.
    minutes_possible: int
    #: How many of the warnings before this end were given.
    warnings: int


def lock_task(placeholder: str) -> str:
    """Return the statement that locks a task until the end of the transaction.

    A task is begun or cancelled, never both: whoever decides takes the lock by a statement of its own, before
    the one that looks. PostgreSQL takes a statement's snapshot before it waits, so READ COMMITTED and two
    statements are both needed. `placeholder` stands for the task id in the driver's style; two ids of one
    hash wait for each other, no more.
    """
    return f"SELECT pg_advisory_xact_lock(hashtextextended({placeholder}, 0))"
