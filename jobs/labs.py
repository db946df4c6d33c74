"""State of labs in PostgreSQL: compare-and-set transitions, each with its ledger row.

Every transition checks that the lab is still where the caller believes it to be and commits the
ledger row with it. Times are the database's. Plain SQL, because SQLAlchemy costs 110 ms and
13 MiB per lab; the tables are those of dispatcher.models.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from jobs.errors import Category, JobError, PermanentError, TransientError
from jobs.retry import through_blips
from jobs.usage import usage

T = TypeVar("T")
Cursor = psycopg2.extensions.cursor

#: Seconds of patience with a database that restarts, before the task goes back to the broker.
BLIP_S = 8.0
#: A new connection may help: also after a failover that made the old server read-only.
_LOST = (
    psycopg2.OperationalError,
    psycopg2.InterfaceError,
    psycopg2.errors.ReadOnlySqlTransaction,
)


@dataclass(frozen=True, slots=True)
class Lab:
    """The part of a `lab_instances` row that decides what to do."""

    status: str
    stop_requested: bool
    k8s_pod_name: str | None

    @property
    def wants_start(self) -> bool:
        """True while the lab is asked for and not started."""
        return self.status == "PENDING" and not self.stop_requested


@dataclass(slots=True)
class TaskRunRecord:
    """What this container will write to the ledger about its task."""

    task_id: str
    task_name: str
    attempt: int
    redelivered: bool
    queue: str
    job_name: str | None
    pod_name: str | None
    published_at: datetime | None
    lab_instance_id: int | None = None
    claimed_monotonic: float = field(default_factory=time.monotonic)
    details: dict[str, Any] = field(default_factory=dict)


class LabStore:
    """One database connection, reopened when it was lost."""

    def __init__(self, url: str, *, application_name: str) -> None:
        self._url = url
        self._application_name = application_name
        self._connection: psycopg2.extensions.connection | None = None

    def warm(self) -> None:
        """Open the connection."""
        self._open()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def find(self, lab_instance_id: int) -> Lab | None:
        """Return the lab, or None when there is no such row."""
        return self.transaction(lambda cursor: _select(cursor, lab_instance_id))

    def mark_running(
        self, record: TaskRunRecord, lab_instance_id: int, *, pod_name: str, connection_url: str
    ) -> bool:
        """Make a PENDING lab RUNNING; False when it is no longer wanted.

        A lab that is RUNNING under the same Pod counts as made: an earlier commit of ours, whose
        answer was lost, or a duplicate of this task.
        """

        def change(cursor: Cursor) -> bool:
            cursor.execute(
                "UPDATE lab_instances SET status = 'RUNNING', k8s_pod_name = %s, connection_url = %s,"
                " celery_task_id = coalesce(celery_task_id, %s), started_at = now(), updated_at = now(),"
                " error_category = NULL, error_message = NULL"
                " WHERE id = %s AND status = 'PENDING' AND stop_requested_at IS NULL",
                (pod_name, connection_url, record.task_id, lab_instance_id),
            )
            if cursor.rowcount == 1:
                _insert_run(cursor, record, "succeeded")
                return True
            lab = _select(cursor, lab_instance_id)
            if lab is None or lab.status != "RUNNING" or lab.k8s_pod_name != pod_name:
                return False
            _insert_run(cursor, record, "noop")
            return True

        return self.transaction(change)

    def mark_failed(self, record: TaskRunRecord, error: JobError, *, outcome: str) -> bool:
        """Make a PENDING lab FAILED with its reason; False when it was not PENDING.

        The ledger row is written in either case.
        """

        def change(cursor: Cursor) -> bool:
            cursor.execute(
                "UPDATE lab_instances SET status = 'FAILED', error_category = %s, error_message = %s,"
                " celery_task_id = coalesce(celery_task_id, %s), failed_at = now(), updated_at = now()"
                " WHERE id = %s AND status = 'PENDING' AND stop_requested_at IS NULL",
                (error.category.value, error.sentence, record.task_id, record.lab_instance_id),
            )
            changed: int = cursor.rowcount
            _insert_run(cursor, record, outcome, error)
            return changed == 1

        return self.transaction(change)

    def request_stop(self, lab_instance_id: int) -> Lab | None:
        """Set the tombstone, which no later create can pass, and return the lab."""

        def change(cursor: Cursor) -> Lab | None:
            cursor.execute(
                "UPDATE lab_instances SET stop_requested_at = now(), updated_at = now()"
                " WHERE id = %s AND stop_requested_at IS NULL",
                (lab_instance_id,),
            )
            return _select(cursor, lab_instance_id)

        return self.transaction(change)

    def mark_stopped(self, record: TaskRunRecord, lab_instance_id: int, *, deleted: int) -> bool:
        """Make the lab STOPPED; False when it already was and nothing had to be deleted."""

        def change(cursor: Cursor) -> bool:
            cursor.execute(
                "UPDATE lab_instances SET status = 'STOPPED', stopped_at = now(), updated_at = now(),"
                " connection_url = NULL WHERE id = %s AND status <> 'STOPPED'",
                (lab_instance_id,),
            )
            done: bool = cursor.rowcount == 1 or deleted > 0
            _insert_run(cursor, record, "succeeded" if done else "noop")
            return done

        return self.transaction(change)

    def record(self, record: TaskRunRecord, outcome: str, error: JobError | None = None) -> None:
        """Write a ledger row that goes with no change of a lab."""
        self.transaction(lambda cursor: _insert_run(cursor, record, outcome, error))

    def transaction(self, work: Callable[[Cursor], T]) -> T:
        """Run `work` in one transaction, again on a new connection if the old one was lost.

        `work` must be safe to repeat: the answer to a commit can be lost after it took effect.

        Raises:
            TransientError: the database did not come back within a few seconds.
            PermanentError: it refuses the statement, for lack of a table or a right.
        """

        def once() -> T:
            connection = self._open()
            try:
                with connection, connection.cursor() as cursor:
                    return work(cursor)
            except _LOST:
                self.close()
                raise

        try:
            return through_blips(once, on=_LOST, within_s=BLIP_S, what="database transaction")
        except _LOST as exc:
            raise TransientError(
                Category.TEMPORARY_NETWORK_ERROR,
                "The platform's database does not answer; the lab is tried again by itself.",
                evidence=str(exc).strip(),
            ) from exc
        except psycopg2.Error as exc:
            raise PermanentError(
                Category.PERMANENT_PERMISSION_ERROR,
                "The platform's database refuses what the job wants to write; the administrator must"
                " correct its tables or rights.",
                evidence=f"{type(exc).__name__}: {exc}".strip(),
            ) from exc

    def _open(self) -> psycopg2.extensions.connection:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg2.connect(
                self._url,
                connect_timeout=5,
                application_name=self._application_name,
                # A server that vanished without a word is noticed within 25 s, not by the kernel's 15 min.
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=3,
                tcp_user_timeout=15_000,
                options="-c statement_timeout=10000 -c lock_timeout=5000"
                " -c idle_in_transaction_session_timeout=30000",
            )
        return self._connection


def _select(cursor: Cursor, lab_instance_id: int) -> Lab | None:
    cursor.execute(
        "SELECT status, stop_requested_at IS NOT NULL, k8s_pod_name FROM lab_instances WHERE id = %s",
        (lab_instance_id,),
    )
    row = cursor.fetchone()
    return Lab(*row) if row else None


def _insert_run(cursor: Cursor, record: TaskRunRecord, outcome: str, error: JobError | None = None) -> None:
    details = record.details | {"usage": usage()}
    if error and error.evidence:
        details["evidence"] = error.evidence
    cursor.execute(
        "INSERT INTO task_ledger (task_id, task_name, lab_instance_id, attempt, redelivered, queue,"
        " job_name, pod_name, published_at, claimed_at, finished_at, outcome, error_category,"
        " error_message, details) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s,"
        " clock_timestamp() - make_interval(secs => %s), clock_timestamp(), %s, %s, %s, %s)",
        (
            record.task_id,
            record.task_name,
            record.lab_instance_id,
            record.attempt,
            record.redelivered,
            record.queue,
            record.job_name,
            record.pod_name,
            record.published_at,
            time.monotonic() - record.claimed_monotonic,
            outcome,
            error.category.value if error else None,
            error.sentence if error else None,
            json.dumps(details),
        ),
    )
