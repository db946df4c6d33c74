"""Tables as SQLAlchemy models, for backends and migrations.

`lab_instances` is shared with the backend, which may insert `lab_id` and `student_id` alone:
all else has a default or is filled by a job. `task_ledger` has one row per run of a task,
`task_outbox` the tasks that wait to be published, `task_cancellations` those not to be begun,
`notifications` whom to tell of what happened to a lab, `dead_letter_actions` what people did in celery.dlq.
"""

from __future__ import annotations

import enum
import uuid
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    DateTime,
    Identity,
    Index,
    LargeBinary,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from dispatcher.failure_contract import Audience


class LabStatus(str, enum.Enum):
    """State of a lab; it only moves down this list."""

    #: Asked for, not started yet.
    PENDING = "PENDING"
    #: The lab's Pod was Ready and answers at connection_url.
    RUNNING = "RUNNING"
    #: It could not be started; error_category and error_message say why.
    FAILED = "FAILED"
    #: Stopped, its objects are gone.
    STOPPED = "STOPPED"


class Outcome(str, enum.Enum):
    """End of one run of a task, or that it has none."""

    #: A container works on it, or died over it: the row of a killed run stays like this.
    STARTED = "started"
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
    #: It was cancelled or had expired before it began.
    REVOKED = "revoked"


class DeadLetterVerb(str, enum.Enum):
    """An action of a person on a message of the dead-letter queue."""

    #: Published again, as a first attempt.
    REQUEUED = "requeued"
    #: Taken away; the row keeps its body.
    DISCARDED = "discarded"


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
            "lab_instances_running_expires_at_idx", "expires_at", postgresql_where=text("status = 'RUNNING'")
        ),
        Index("lab_instances_live_id_idx", "id", postgresql_where=text("status IN ('PENDING', 'RUNNING')")),
        UniqueConstraint("restart_of", name="lab_instances_restart_of_key"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    lab_id: Mapped[int]
    student_id: Mapped[int]
    status: Mapped[str] = mapped_column(server_default=text("'PENDING'"))
    k8s_pod_name: Mapped[str | None]
    connection_url: Mapped[str | None]
    celery_task_id: Mapped[str | None]
    error_category: Mapped[str | None]
    #: A sentence for student and teacher: what happened and who must act.
    error_message: Mapped[str | None]
    failed_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    stopped_at: Mapped[datetime | None]
    #: Tombstone: from here on no create may make the lab RUNNING.
    stop_requested_at: Mapped[datetime | None]
    expires_at: Mapped[datetime] = mapped_column(server_default=text("now() + interval '2 hours'"))
    #: The latest `expires_at` that an extension may set.
    max_expires_at: Mapped[datetime] = mapped_column(server_default=text("now() + interval '8 hours'"))
    #: The end that the last extension confirmed; no greatest age ends the lab before it.
    extended_to: Mapped[datetime | None]
    #: The lab in whose place this one was started, because that one's Pod was lost.
    restart_of: Mapped[int | None]
    #: The run of a create (task_ledger.run_id) that replaced what another one made under the same name, which
    #: k8s_pod_name says then: only this one may make the lab RUNNING.
    starting_run: Mapped[uuid.UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class TaskRun(Base):
    """One run of a task by one container.

    The row is made at the claim, as `started`, and completed in the transaction that changes the lab.
    """

    __tablename__ = "task_ledger"
    __table_args__ = (
        CheckConstraint(_one_of("outcome", Outcome), name="task_ledger_outcome_check"),
        CheckConstraint(
            "(outcome = 'started') = (finished_at IS NULL)", name="task_ledger_finished_at_check"
        ),
        UniqueConstraint("run_id", name="task_ledger_run_id_key"),
        Index("task_ledger_task_id_idx", "task_id"),
        Index("task_ledger_lab_instance_id_idx", "lab_instance_id"),
        Index(
            "task_ledger_task_name_id_idx",
            "task_name",
            "id",
            postgresql_where=text("lab_instance_id IS NULL"),
        ),
        Index(
            "task_ledger_started_claimed_at_idx", "claimed_at", postgresql_where=text("outcome = 'started'")
        ),
        Index(
            "task_ledger_retried_finished_at_idx", "finished_at", postgresql_where=text("outcome = 'retried'")
        ),
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
    #: The publisher's clock gave this time, the database's all others.
    published_at: Mapped[datetime | None]
    claimed_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    outcome: Mapped[str]
    error_category: Mapped[str | None]
    error_message: Mapped[str | None]
    #: Seconds per step since the claim, versions of the templates used, evidence of a failure.
    details: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    #: Made by the container, so that a statement repeated after a lost answer writes no second row.
    #: None in rows of before revision 0002.
    run_id: Mapped[uuid.UUID | None] = mapped_column(server_default=text("gen_random_uuid()"))


class OutboxTask(Base):
    """A task to be published once the transaction that added it is committed; gone once confirmed."""

    __tablename__ = "task_outbox"
    __table_args__ = (
        UniqueConstraint("task_id", name="task_outbox_task_id_key"),
        CheckConstraint("octet_length(task_id) BETWEEN 1 AND 255", name="task_outbox_task_id_check"),
        CheckConstraint("octet_length(task_name) BETWEEN 1 AND 255", name="task_outbox_task_name_check"),
        CheckConstraint("jsonb_typeof(kwargs) = 'object'", name="task_outbox_kwargs_check"),
        # What a container takes (dispatcher.message.envelope.MAX_BODY_BYTES); the broker closes on 16 MiB.
        CheckConstraint("octet_length(kwargs::text) <= 1048576", name="task_outbox_kwargs_size_check"),
        # Not infinity, nor what Python's datetime cannot hold. RabbitMQ closes the channel on an expiration
        # of more than ten years, under all that is on its way; tasks.MAX_DELAY_S is 3107 days.
        CheckConstraint("eta BETWEEN '1970-01-01Z' AND '9999-01-01Z'", name="task_outbox_eta_check"),
        CheckConstraint(
            "expires BETWEEN '1970-01-01Z' AND created_at + interval '3107 days'",
            name="task_outbox_expires_check",
        ),
        Index("task_outbox_lab_instance_id_idx", "lab_instance_id", "id"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    task_id: Mapped[str] = mapped_column(server_default=text("(gen_random_uuid())::text"))
    task_name: Mapped[str]
    kwargs: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    #: From kwargs, by the database; tasks of one lab are published in the order of their ids.
    lab_instance_id: Mapped[int | None] = mapped_column(
        Computed("(kwargs ->> 'lab_instance_id')::bigint", persisted=True)
    )
    eta: Mapped[datetime | None]
    expires: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    #: Later than created_at after a failure.
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    last_error: Mapped[str | None]


class TaskCancellation(Base):
    """A task that nobody is to begin any more."""

    __tablename__ = "task_cancellations"

    task_id: Mapped[str] = mapped_column(primary_key=True)
    requested_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class Notification(Base):
    """News for somebody, told once: a failure of a lab, its end that comes; the row stays as evidence."""

    __tablename__ = "notifications"
    __table_args__ = (
        Index(
            "notifications_once_idx",
            text("coalesce(lab_instance_id, 0)"),
            "cause",
            text("coalesce(occasion, '-infinity')"),
            unique=True,
        ),
        CheckConstraint(_one_of("told", Audience), name="notifications_told_check"),
        Index(
            "notifications_waiting_idx",
            "next_attempt_at",
            postgresql_where=text("published_at IS NULL OR webhook_at IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    #: Such as lab.failed, lab.ends_soon or platform.cleanup_refused; docs/reference/notifications.md has all.
    event_type: Mapped[str] = mapped_column(server_default=text("'lab.failed'"))
    #: None: it is about the platform.
    lab_instance_id: Mapped[int | None]
    #: As details.cause of the ledger.
    cause: Mapped[str]
    #: What makes it another one of the same cause: the end that is announced, for example.
    occasion: Mapped[datetime | None]
    told: Mapped[str]
    #: None: nothing failed.
    error_category: Mapped[str | None]
    #: A sentence for people; a failed lab has the same in lab_instances.error_message.
    message: Mapped[str]
    #: What else the event says, by name.
    facts: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    task_id: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    #: When the broker confirmed the event.
    published_at: Mapped[datetime | None]
    #: When the webhook took it, or was found not to be set.
    webhook_at: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    #: 9999-01-01: nobody is told any more.
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    last_error: Mapped[str | None]


class DeadLetterAction(Base):
    """One action of a person on one message of the dead-letter queue."""

    __tablename__ = "dead_letter_actions"
    __table_args__ = (
        CheckConstraint(_one_of("action", DeadLetterVerb), name="dead_letter_actions_action_check"),
        Index("dead_letter_actions_task_id_idx", "task_id"),
        Index(
            "dead_letter_actions_message_key_idx",
            "message_key",
            postgresql_ops={"message_key": "text_pattern_ops"},
        ),
        Index("dead_letter_actions_lab_instance_id_idx", "lab_instance_id"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    acted_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    #: user@host of who ran the command, or as --actor says.
    actor: Mapped[str]
    action: Mapped[str]
    #: SHA-256 of body, task id and time of death: names the message, also one without a task id.
    message_key: Mapped[str]
    task_id: Mapped[str | None]
    task_name: Mapped[str | None]
    lab_instance_id: Mapped[int | None]
    routing_key: Mapped[str]
    reason: Mapped[str | None]
    error_category: Mapped[str | None]
    #: As `autolabs dlq list` says it.
    cause: Mapped[str | None]
    content_type: Mapped[str | None]
    content_encoding: Mapped[str | None]
    headers: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    #: The body of a discarded message, cut to 1 MiB, so that it can be published again by hand.
    body: Mapped[bytes | None] = mapped_column(LargeBinary)
    body_bytes: Mapped[int]
