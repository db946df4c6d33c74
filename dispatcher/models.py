"""Tables as SQLAlchemy models, for backends and migrations.

`lab_instances` is shared with the backend, which may insert `lab_id` and `student_id` alone:
all else has a default or is filled by a job. `task_ledger` has one row per run of a task.
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, CheckConstraint, DateTime, Identity, Index, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class LabStatus(str, enum.Enum):
    """Where a lab is in its life; it only moves down this list."""

    #: Asked for, not started yet.
    PENDING = "PENDING"
    #: Its Pod was Ready and answers at connection_url.
    RUNNING = "RUNNING"
    #: It could not be started; error_category and error_message say why.
    FAILED = "FAILED"
    #: Stopped, its objects are gone.
    STOPPED = "STOPPED"


class Outcome(str, enum.Enum):
    """How one run of a task ended."""

    #: The operation was performed.
    SUCCEEDED = "succeeded"
    #: There was nothing to do: a duplicate, a stopped lab, an object already gone.
    NOOP = "noop"
    #: A permanent error; the lab is FAILED.
    FAILED = "failed"
    #: A transient error; the task was published again with a delay.
    RETRIED = "retried"
    #: The message went to the dead-letter queue.
    DEAD_LETTERED = "dead_lettered"


_NOW = text("now()")


def _one_of(column: str, values: type[enum.Enum]) -> str:
    return f"{column} IN ({', '.join(repr(member.value) for member in values)})"


class Base(DeclarativeBase):
    """Declarative base; timestamps are aware."""

    type_annotation_map: ClassVar = {datetime: DateTime(timezone=True), str: Text, int: BigInteger}


class LabInstance(Base):
    """One lab of one student."""

    __tablename__ = "lab_instances"
    __table_args__ = (
        CheckConstraint(_one_of("status", LabStatus), name="lab_instances_status_check"),
        Index(
            "lab_instances_running_expires_at_idx",
            "expires_at",
            postgresql_where=text("status = 'RUNNING'"),
        ),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    lab_id: Mapped[int]
    student_id: Mapped[int]
    status: Mapped[str] = mapped_column(server_default=text("'PENDING'"))
    k8s_pod_name: Mapped[str | None]
    connection_url: Mapped[str | None]
    celery_task_id: Mapped[str | None]
    error_category: Mapped[str | None]
    #: For the student and the teacher: what happened and who must act.
    error_message: Mapped[str | None]
    failed_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    stopped_at: Mapped[datetime | None]
    #: Tombstone: from here on no create may make the lab RUNNING.
    stop_requested_at: Mapped[datetime | None]
    expires_at: Mapped[datetime] = mapped_column(server_default=text("now() + interval '2 hours'"))
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class TaskRun(Base):
    """One run of a task by one container, written in the transaction that changes the lab."""

    __tablename__ = "task_ledger"
    __table_args__ = (
        CheckConstraint(_one_of("outcome", Outcome), name="task_ledger_outcome_check"),
        Index("task_ledger_task_id_idx", "task_id"),
        Index("task_ledger_lab_instance_id_idx", "lab_instance_id"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    task_id: Mapped[str]
    task_name: Mapped[str]
    #: No foreign key: evidence outlives the row it is about.
    lab_instance_id: Mapped[int | None]
    #: 1 for the first; a retry of the task has the next number, a redelivery the same.
    attempt: Mapped[int]
    redelivered: Mapped[bool]
    queue: Mapped[str]
    job_name: Mapped[str | None]
    pod_name: Mapped[str | None]
    #: By the publisher's clock; the other times are the database's.
    published_at: Mapped[datetime | None]
    claimed_at: Mapped[datetime]
    finished_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    outcome: Mapped[str]
    error_category: Mapped[str | None]
    error_message: Mapped[str | None]
    #: Seconds per step since the claim, versions of the templates used, evidence of a failure.
    details: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
