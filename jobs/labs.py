"""State of labs in PostgreSQL: compare-and-set transitions, each with its ledger row.

A run has its ledger row from its beginning on. Every transition checks that the lab is still where the
caller believes it to be and completes that row in the same transaction. Times are the database's. Plain
SQL, because SQLAlchemy costs 110 ms and 13 MiB per lab; the tables are those of dispatcher.models.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from dispatcher.task_lock import lock_task
from jobs.errors import JobError
from jobs.failures import Failure
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
#: Milliseconds.
_OPTIONS = (
    "-c statement_timeout=10000 -c lock_timeout=5000 -c idle_in_transaction_session_timeout=30000"
    # What dispatcher.task_lock needs, whatever the server's default is.
    " -c default_transaction_isolation=read\\ committed"
)


@dataclass(frozen=True, slots=True)
class Lab:
    """The part of a `lab_instances` row that decides what to do."""

    status: str
    stop_requested: bool
    k8s_pod_name: str | None
    connection_url: str | None

    @property
    def wants_start(self) -> bool:
        """True while the lab is asked for and not started."""
        return self.status == "PENDING" and not self.stop_requested


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended, as the ledger and the result of the task say it."""

    #: As dispatcher.models.Outcome.
    outcome: str
    error_category: str | None = None
    error_message: str | None = None
    #: As jobs.failures.Failure.cause.
    cause: str | None = None
    #: For operators.
    evidence: str = ""
    #: What a success gives to whoever waits for the task.
    result: dict[str, Any] | None = None

    @classmethod
    def of_error(cls, outcome: str, error: JobError) -> Ending:
        """Return the ending of a run that an error ended."""
        return cls(
            outcome, error.category.value, error.sentence, cause=error.failure.cause, evidence=error.evidence
        )


@dataclass(slots=True)
class TaskRunRecord:
    """What this container writes to the ledger about its task, and what it wrote last."""

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
    #: Ours, so that a statement repeated after a lost answer writes no second row.
    run_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    #: As it was committed last, or as it would be if the database had taken it.
    ending: Ending | None = None
    #: Of whom to tell of the failed lab (jobs.notifications).
    notification_id: int | None = None


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
        return self._at_once(lambda cursor: _select(cursor, lab_instance_id))

    def begin(self, record: TaskRunRecord) -> bool:
        """Write the run's ledger row, as started; False when its task was cancelled before that.

        One round trip. Either this run sees the cancellation, or who cancels sees this run
        (dispatcher.task_lock).
        """
        return self._at_once(lambda cursor: _insert_started(cursor, record))

    def is_cancelled(self, task_id: str) -> bool:
        """Tell whether a task is not to be performed any more. One round trip."""

        def ask(cursor: Cursor) -> bool:
            cursor.execute("SELECT FROM task_cancellations WHERE task_id = %s", (task_id,))
            return cursor.rowcount == 1

        return self._at_once(ask)

    def mark_running(
        self, record: TaskRunRecord, lab_instance_id: int, *, pod_name: str, connection_url: str
    ) -> bool:
        """Make a PENDING lab RUNNING; False when it is no longer wanted.

        A lab that is RUNNING under the same Pod counts as made: an earlier commit of ours, whose
        answer was lost, or a duplicate of this task.
        """

        def change(cursor: Cursor) -> tuple[bool, Ending | None]:
            cursor.execute(
                "UPDATE lab_instances SET status = 'RUNNING', k8s_pod_name = %s, connection_url = %s,"
                " celery_task_id = coalesce(celery_task_id, %s), started_at = now(), updated_at = now(),"
                " error_category = NULL, error_message = NULL"
                " WHERE id = %s AND status = 'PENDING' AND stop_requested_at IS NULL"
                " AND NOT EXISTS (SELECT FROM task_cancellations WHERE task_id = %s)",
                (pod_name, connection_url, record.task_id, lab_instance_id, record.task_id),
            )
            if cursor.rowcount == 1:
                lab = Lab("RUNNING", False, pod_name, connection_url)
                return True, Ending("succeeded", result=lab_result(lab_instance_id, lab))
            found = _select(cursor, lab_instance_id)
            if found is None or found.status != "RUNNING" or found.k8s_pod_name != pod_name:
                return False, None
            return True, Ending("noop", result=lab_result(lab_instance_id, found))

        return self._end(record, change)

    def mark_failed(self, record: TaskRunRecord, error: JobError, *, outcome: str) -> bool:
        """Make a PENDING lab FAILED with its reason; False when it was not PENDING.

        The ledger row is written in either case; whom to tell is committed with the lab's row.
        """
        from jobs.notifications import add_notification

        def change(cursor: Cursor) -> tuple[bool, Ending | None]:
            cursor.execute(
                "UPDATE lab_instances SET status = 'FAILED', error_category = %s, error_message = %s,"
                " celery_task_id = coalesce(celery_task_id, %s), failed_at = now(), updated_at = now()"
                " WHERE id = %s AND status = 'PENDING' AND stop_requested_at IS NULL",
                (error.category.value, error.sentence, record.task_id, record.lab_instance_id),
            )
            changed = cursor.rowcount == 1
            record.notification_id = add_notification(cursor, record, error) if changed else None
            return changed, Ending.of_error(outcome, error)

        return self._end(record, change)

    def mark_lost(
        self, record: TaskRunRecord, error: JobError, *, status: str, pod_name: str | None, as_of: datetime
    ) -> bool:
        """Make a lab FAILED that is not what its row says; False when something happened to it since `as_of`.

        `status` and `pod_name` are those of the row as it was read then. The run has succeeded with it, and
        whom to tell is committed with the lab's row.
        """
        from jobs.notifications import add_notification

        def change(cursor: Cursor) -> tuple[bool, Ending | None]:
            cursor.execute(
                "UPDATE lab_instances SET status = 'FAILED', error_category = %s, error_message = %s,"
                " connection_url = NULL, failed_at = now(), updated_at = now()"
                " WHERE id = %s AND status = %s AND k8s_pod_name IS NOT DISTINCT FROM %s"
                " AND stop_requested_at IS NULL"
                " AND NOT EXISTS (SELECT FROM task_outbox WHERE lab_instance_id = lab_instances.id)"
                " AND NOT EXISTS (SELECT FROM task_ledger WHERE lab_instance_id = lab_instances.id"
                "                 AND coalesce(finished_at, claimed_at) >= %s)",
                (error.category.value, error.sentence, record.lab_instance_id, status, pod_name, as_of),
            )
            if cursor.rowcount != 1:
                return False, None
            record.notification_id = add_notification(cursor, record, error)
            return True, Ending("succeeded", cause=error.failure.cause, evidence=error.evidence)

        return self._end(record, change)

    def mark_cancelled(self, record: TaskRunRecord, sentence: str) -> bool:
        """Make a PENDING lab STOPPED because its start was cancelled; False when it was not PENDING.

        The ledger row is written in either case.
        """

        def change(cursor: Cursor) -> tuple[bool, Ending | None]:
            cursor.execute(
                "UPDATE lab_instances SET status = 'STOPPED', stopped_at = now(), updated_at = now(),"
                " stop_requested_at = coalesce(stop_requested_at, now()), error_message = %s,"
                " celery_task_id = coalesce(celery_task_id, %s) WHERE id = %s AND status = 'PENDING'",
                (sentence, record.task_id, record.lab_instance_id),
            )
            ending = Ending("revoked", error_message=sentence, cause=Failure.CANCELLED.cause)
            return cursor.rowcount == 1, ending

        return self._end(record, change)

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

        def change(cursor: Cursor) -> tuple[bool, Ending | None]:
            cursor.execute(
                "UPDATE lab_instances SET status = 'STOPPED', stopped_at = now(), updated_at = now(),"
                " connection_url = NULL WHERE id = %s AND status <> 'STOPPED'",
                (lab_instance_id,),
            )
            changed = cursor.rowcount == 1
            known = changed or _select(cursor, lab_instance_id) is not None
            result = {"lab_instance_id": lab_instance_id, "status": "STOPPED" if known else None}
            done = changed or deleted > 0
            return done, Ending("succeeded" if done else "noop", result=result)

        return self._end(record, change)

    def record(self, record: TaskRunRecord, ending: Ending) -> None:
        """End a run that changed no lab."""
        self._end(record, lambda _cursor: (True, ending))

    def record_failed_stop(self, record: TaskRunRecord, error: JobError) -> None:
        """End a delete that failed for good; whom to tell is committed with it."""
        from jobs.notifications import add_notification

        def change(cursor: Cursor) -> tuple[bool, Ending | None]:
            record.notification_id = add_notification(cursor, record, error, event_type="lab.stop_failed")
            return True, Ending.of_error("dead_lettered", error)

        self._end(record, change)

    def _end(self, record: TaskRunRecord, change: Callable[[Cursor], tuple[bool, Ending | None]]) -> bool:
        """Change a lab and end the run in one transaction; without an ending the run goes on."""

        def work(cursor: Cursor) -> tuple[bool, Ending | None]:
            changed, ending = change(cursor)
            if ending:
                _write_ending(cursor, record, ending)
            return changed, ending

        changed, ending = self.transaction(work)
        record.ending = ending or record.ending
        return changed

    def transaction(self, work: Callable[[Cursor], T]) -> T:
        """Run `work` in one transaction, again on a new connection if the old one was lost.

        Three round trips and those of `work`, which must be safe to repeat: the answer to a commit can
        be lost after it took effect.

        Raises:
            TransientError: the database did not come back within a few seconds.
            PermanentError: it refuses the statement, for lack of a table or a right.
        """

        def in_transaction(connection: psycopg2.extensions.connection) -> T:
            with connection, connection.cursor() as cursor:
                return work(cursor)

        return self._on_connection(in_transaction)

    def _at_once(self, work: Callable[[Cursor], T]) -> T:
        """Run `work`, one statement that is its own transaction: one round trip. Raises as `transaction`."""

        def at_once(connection: psycopg2.extensions.connection) -> T:
            with connection.cursor() as cursor:
                return work(cursor)

        return self._on_connection(at_once)

    def _on_connection(self, work: Callable[[psycopg2.extensions.connection], T]) -> T:
        def once() -> T:
            try:
                return work(self._open())
            except _LOST:
                self.close()
                raise

        try:
            return through_blips(once, on=_LOST, within_s=BLIP_S, what="database transaction")
        except _LOST as exc:
            raise Failure.DATABASE_AWAY.error(evidence=str(exc).strip()) from exc
        except psycopg2.Error as exc:
            evidence = f"{type(exc).__name__}: {exc}".strip()
            raise Failure.DATABASE_REFUSES.error(evidence=evidence) from exc

    def _open(self) -> psycopg2.extensions.connection:
        if self._connection is None or self._connection.closed:
            # An argument replaces what the URL says: its search_path, or whatever else it sets, has to stay.
            given = psycopg2.extensions.parse_dsn(self._url).get("options", "")
            self._connection = psycopg2.connect(
                self._url,
                connect_timeout=5,
                application_name=self._application_name,
                # A server that vanished without a word is noticed within 25 s, not by the kernel's 15 min.
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=3,
                tcp_user_timeout=15_000,
                options=f"{given} {_OPTIONS}".strip(),
            )
            # `with connection` begins a transaction all the same.
            self._connection.autocommit = True
        return self._connection


def _select(cursor: Cursor, lab_instance_id: int) -> Lab | None:
    cursor.execute(
        "SELECT status, stop_requested_at IS NOT NULL, k8s_pod_name, connection_url"
        " FROM lab_instances WHERE id = %s",
        (lab_instance_id,),
    )
    row = cursor.fetchone()
    return Lab(*row) if row else None


def lab_result(lab_instance_id: int, lab: Lab) -> dict[str, Any]:
    """Return the result of a create: where its lab is now."""
    return {
        "lab_instance_id": lab_instance_id,
        "status": lab.status,
        "k8s_pod_name": lab.k8s_pod_name,
        "connection_url": lab.connection_url,
    }


_COLUMNS = (
    "run_id, task_id, task_name, lab_instance_id, attempt, redelivered, queue, job_name, pod_name,"
    " published_at, claimed_at"
)
_VALUES = (
    "%(run_id)s, %(task_id)s, %(task_name)s, %(lab_instance_id)s, %(attempt)s, %(redelivered)s, %(queue)s,"
    " %(job_name)s, %(pod_name)s, %(published_at)s, clock_timestamp() - make_interval(secs => %(age_s)s)"
)
# A repeated begin finds its own row and has begun, whatever was cancelled since.
_BEGIN = f"""
{lock_task("%(task_id)s")};
INSERT INTO task_ledger ({_COLUMNS}, outcome, details) SELECT {_VALUES}, 'started', %(details)s
 WHERE NOT EXISTS (SELECT FROM task_cancellations WHERE task_id = %(task_id)s)
    OR EXISTS (SELECT FROM task_ledger WHERE run_id = %(run_id)s)
ON CONFLICT (run_id) DO UPDATE SET run_id = excluded.run_id
"""  # noqa: S608  # constants of this module
# The first ending stands: it was committed with the lab, and the second is a repetition.
_END = f"""
INSERT INTO task_ledger ({_COLUMNS}, finished_at, outcome, error_category, error_message, details)
VALUES ({_VALUES}, clock_timestamp(), %(outcome)s, %(error_category)s, %(error_message)s, %(details)s)
ON CONFLICT (run_id) DO UPDATE SET finished_at = excluded.finished_at, outcome = excluded.outcome,
 error_category = excluded.error_category, error_message = excluded.error_message,
 details = excluded.details WHERE task_ledger.outcome = 'started'
"""  # noqa: S608


def _insert_started(cursor: Cursor, record: TaskRunRecord) -> bool:
    cursor.execute(_BEGIN, _run_values(record, record.details))
    return cursor.rowcount == 1


def _write_ending(cursor: Cursor, record: TaskRunRecord, ending: Ending) -> None:
    details = record.details | {"usage": usage()}
    if ending.cause:
        details["cause"] = ending.cause
    if ending.evidence:
        details["evidence"] = ending.evidence
    if ending.result is not None:
        details["result"] = ending.result
    values = {
        "outcome": ending.outcome,
        "error_category": ending.error_category,
        "error_message": ending.error_message,
    }
    cursor.execute(_END, _run_values(record, details) | values)


def _run_values(record: TaskRunRecord, details: dict[str, Any]) -> dict[str, Any]:
    return {
        "run_id": record.run_id,
        "task_id": record.task_id,
        "task_name": record.task_name,
        "lab_instance_id": record.lab_instance_id,
        "attempt": record.attempt,
        "redelivered": record.redelivered,
        "queue": record.queue,
        "job_name": record.job_name,
        "pod_name": record.pod_name,
        "published_at": record.published_at,
        "age_s": time.monotonic() - record.claimed_monotonic,
        "details": json.dumps(details),
    }
