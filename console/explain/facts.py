"""Hold all that is known of a lab at one moment: rows of the database, and a look at a queue.

console.explain.reading makes LabFacts; all else in this folder works on them alone.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dispatcher import tasks
from dispatcher.failure_contract import EventType
from dispatcher.tasks import MAX_DELAY_S

#: Events that tell of a failure; all others are news.
FAILURE_EVENTS = (EventType.LAB_FAILED, EventType.STOP_FAILED)


class Operation(str, enum.Enum):
    """What a task is to do with a lab."""

    CREATE = "create"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabRow:
    """The row of the lab; the names are those of lab_instances."""

    id: int
    lab_id: int
    student_id: int
    status: str
    k8s_pod_name: str | None = None
    connection_url: str | None = None
    celery_task_id: str | None = None
    error_category: str | None = None
    error_message: str | None = None
    failed_at: datetime | None = None
    started_at: datetime | None = None
    stopped_at: datetime | None = None
    stop_requested_at: datetime | None = None
    expires_at: datetime
    #: None in a database without a limit for extensions (before revision 0005).
    max_expires_at: datetime | None = None
    #: The lab that was lost and in whose place this one was started.
    restart_of: int | None = None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a task by a container, as in task_ledger."""

    id: int
    task_id: str
    task_name: str
    attempt: int
    redelivered: bool
    queue: str
    job_name: str | None = None
    pod_name: str | None = None
    published_at: datetime | None = None
    claimed_at: datetime
    finished_at: datetime | None = None
    outcome: str
    error_category: str | None = None
    error_message: str | None = None
    #: Only what explains: steps, cause, evidence, seen, retry_delay_s, objects_kept_s, and of a repair found
    #: and done. Anybody may have written them, anyhow.
    details: dict[str, Any]

    @property
    def has_failed(self) -> bool:
        """True: its message is in celery.dlq, or its lab FAILED."""
        return self.outcome in ("failed", "dead_lettered")

    @property
    def cause(self) -> str | None:
        """The row of jobs.failures, or None."""
        cause = self.details.get("cause")
        return cause if isinstance(cause, str) else None

    @property
    def retry_delay_s(self) -> float | None:
        """Seconds after which the task comes again, or None where the ledger does not say."""
        return self._number("retry_delay_s")

    @property
    def objects_kept_s(self) -> float:
        """Seconds for which a lab that failed stays in the cluster, to be looked at."""
        return self._number("objects_kept_s") or 0.0

    def _number(self, key: str) -> float | None:
        value = self.details.get(key)
        # No delay is longer than the ladder, whatever the row says.
        return min(max(float(value), 0.0), MAX_DELAY_S) if isinstance(value, (int, float)) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingRow:
    """A task of the lab in the outbox."""

    id: int
    task_id: str
    task_name: str
    created_at: datetime
    next_attempt_at: datetime
    failures: int = 0
    last_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancellation:
    """A task of the lab that nobody is to begin any more."""

    task_id: str
    requested_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationRow:
    """What somebody is told about the lab: that it failed, or something else."""

    event_type: str = EventType.LAB_FAILED
    cause: str
    told: str
    error_category: str | None = None
    message: str
    #: The end that is announced: another end makes another notification of the same cause.
    occasion: datetime | None = None
    created_at: datetime
    published_at: datetime | None = None
    webhook_at: datetime | None = None
    failures: int = 0
    next_attempt_at: datetime
    last_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionRow:
    """What somebody did with a dead letter of the lab."""

    acted_at: datetime
    actor: str
    action: str
    task_id: str | None = None
    task_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSnapshot:
    """A look at the queue where the lab's task would be; `problem` instead of numbers if it failed."""

    queue: str
    #: Messages that wait, for whatever lab: a queue cannot be searched.
    messages: int | None = None
    #: Containers that wait for a message; one that has a message is no consumer any more.
    consumers: int | None = None
    #: Messages on the delay ladder and in celery.dlq, of whatever lab; None: not counted.
    delayed: int | None = None
    dead: int | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class CleanupRefusal:
    """A cleanup that did nothing, because it did not believe what it found."""

    at: datetime
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LabFacts:
    """All that is known of a lab at one moment; lists are the oldest first."""

    #: The database's clock gave this and all other times but Run.published_at.
    now: datetime
    lab_instance_id: int
    #: None: there is no such row, though others speak of the lab.
    lab: LabRow | None
    runs: tuple[Run, ...] = ()
    #: Number of older runs, which were not read.
    earlier_runs: int = 0
    outbox: tuple[WaitingRow, ...] = ()
    cancellations: tuple[Cancellation, ...] = ()
    notifications: tuple[NotificationRow, ...] = ()
    actions: tuple[ActionRow, ...] = ()
    queue: QueueSnapshot | None = None
    #: The lab that was started in place of this one.
    restarted_as: int | None = None
    #: The last looks at all labs, by the health check and the sync; None: not in the ledger.
    health_checked_at: datetime | None = None
    synced_at: datetime | None = None
    #: None: the last cleanup did its work, or none has run yet.
    cleanup_refused: CleanupRefusal | None = None

    @property
    def failures(self) -> list[NotificationRow]:
        return [row for row in self.notifications if row.event_type in FAILURE_EVENTS]

    def age_s(self, moment: datetime) -> float:
        """Return the seconds since a moment; negative for one to come."""
        return (self.now - moment).total_seconds()

    def runs_of(self, operation: Operation) -> list[Run]:
        return [run for run in self.runs if self.operation_of(run.task_name, run.task_id) is operation]

    def operation_of(self, task_name: str | None, task_id: str | None) -> Operation | None:
        """Return the operation of a task; None for one that is about something else."""
        if task_name == tasks.DELETE_LAB_POD:
            return Operation.DELETE
        # A message that could not be read has its task id alone.
        first = not task_name and task_id and self.lab and task_id == self.lab.celery_task_id
        return Operation.CREATE if first or task_name == tasks.CREATE_LAB_POD else None

    def is_cancelled(self, operation: Operation) -> bool:
        """Tell whether a task of this operation was cancelled, its last one if there are several."""
        runs = self.runs_of(operation)
        rows = [row for row in self.outbox if self.operation_of(row.task_name, None) is operation]
        first = self.lab.celery_task_id if self.lab and operation is Operation.CREATE else None
        task_id = rows[-1].task_id if rows else runs[-1].task_id if runs else first
        return task_id in {cancelled.task_id for cancelled in self.cancellations}

    def was_replaced(self, run: Run) -> bool:
        """Tell whether the task of a run was taken again since, because its container was lost."""
        return any(
            later.id > run.id
            and later.task_id == run.task_id
            and (later.redelivered or later.attempt > run.attempt)
            for later in self.runs
        )
