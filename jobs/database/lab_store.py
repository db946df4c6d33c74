"""Change labs in PostgreSQL, each change and its ledger row in one transaction.

A run has its ledger row from its beginning on. Every change checks that the lab is still where the caller
believes it to be, and completes that row.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from dispatcher.failure_contract import EventType
from dispatcher.tasks import SYNC_LAB_STATUS
from jobs.database.connection import Cursor, Database, optional
from jobs.database.lab_rows import (
    MAKE_FAILED,
    OWNED,
    OWNED_BY_RUN,
    SET_TOMBSTONE,
    STATE,
    WAITS,
    LabState,
    failed_because,
    read_lab,
)
from jobs.database.ledger import (
    CANCELLED,
    VERIFY_TASK,
    Ending,
    TaskRunRecord,
    insert_started,
    may_go_on,
    write_ending,
)
from jobs.errors import JobError
from jobs.failures import Failure

# Take a lab over, before its objects are replaced.
_TAKE_OVER = f"""
UPDATE lab_instances SET starting_run = %(run_id)s, k8s_pod_name = %(pod)s, updated_at = now()
WHERE id = %(lab)s AND {WAITS} AND {OWNED}
"""  # noqa: S608  # constants
# Make a lab RUNNING. An earlier run of the task may still be at it and replace the Pod that this one has seen
# Ready: what that one has taken over it alone makes RUNNING.
_START = f"""
UPDATE lab_instances SET status = 'RUNNING', k8s_pod_name = %(pod)s, connection_url = %(url)s,
 celery_task_id = coalesce(celery_task_id, %(task_id)s), started_at = now(), updated_at = now(),
 error_category = NULL, error_message = NULL
WHERE id = %(lab)s AND {WAITS} AND {OWNED_BY_RUN} AND NOT {CANCELLED}
RETURNING {STATE}
"""  # noqa: S608
# Make a lab FAILED that its create cannot start.
_FAIL = f"{MAKE_FAILED} id = %(lab)s AND {WAITS} AND {OWNED}"
# Make a lab FAILED that is not what its row says. What a sync or `autolabs verify` has begun at it changes
# its objects alone, in a moment; any other run may be about to change its row.
_LOSE = f"""
{MAKE_FAILED} id = (SELECT id FROM lab_instances WHERE id = %(lab)s FOR UPDATE SKIP LOCKED)
 AND status = %(status)s AND k8s_pod_name IS NOT DISTINCT FROM %(pod)s AND stop_requested_at IS NULL
 AND NOT EXISTS (SELECT FROM task_outbox WHERE lab_instance_id = lab_instances.id)
 AND NOT EXISTS (SELECT FROM task_ledger AS run WHERE lab_instance_id = lab_instances.id
  AND (coalesce(finished_at, claimed_at) >= %(as_of)s
   OR ({may_go_on("run")} AND task_name NOT IN ('{SYNC_LAB_STATUS}', '{VERIFY_TASK}'))))
"""  # noqa: S608
# Make a lab STOPPED whose create was cancelled.
_CANCEL = f"""
UPDATE lab_instances SET status = 'STOPPED', stopped_at = now(), updated_at = now(),
 stop_requested_at = coalesce(stop_requested_at, now()), error_message = %(sentence)s,
 celery_task_id = coalesce(celery_task_id, %(task_id)s)
WHERE id = %(lab)s AND status = 'PENDING' AND {OWNED}
"""  # noqa: S608
# Set the tombstone of one lab, once.
_REQUEST_STOP = f"{SET_TOMBSTONE} id = %s AND stop_requested_at IS NULL"
# Make a lab STOPPED whose objects are gone.
_STOP = """
UPDATE lab_instances SET status = 'STOPPED', stopped_at = now(), updated_at = now(), connection_url = NULL
WHERE id = %s AND status <> 'STOPPED'
"""
# Say where a lab is reached that runs with this Pod, if its row still has the URL that was read.
_CHANGE_URL = """
UPDATE lab_instances SET connection_url = %s, updated_at = now()
WHERE id = %s AND status = 'RUNNING' AND k8s_pod_name = %s AND connection_url IS NOT DISTINCT FROM %s
"""


class LabStore(Database):
    """The rows of labs, as handlers and checks change them."""

    def find(self, lab_instance_id: int, *, task_id: str | None = None) -> LabState | None:
        return self.at_once(lambda cursor: read_lab(cursor, lab_instance_id, task_id))

    def begin(self, record: TaskRunRecord) -> bool:
        """Write the run's ledger row, as started; False when its task was cancelled before that.

        Either this run sees the cancellation, or who cancels sees this run (dispatcher.task_status).
        """
        return self.at_once(lambda cursor: insert_started(cursor, record))

    def take_over(self, record: TaskRunRecord, lab_instance_id: int, *, pod_name: str) -> bool:
        """Let only this run make the lab RUNNING, before it replaces objects that are called `pod_name`.

        False when another create has done so, or the lab is not wanted any more; a later run of the same
        task takes the place of an earlier one.
        """

        def change(cursor: Cursor) -> bool:
            cursor.execute(_TAKE_OVER, _ids(record) | {"lab": lab_instance_id, "pod": pod_name})
            return cursor.rowcount == 1

        return self.at_once(change)

    def mark_running(
        self, record: TaskRunRecord, lab_instance_id: int, *, pod_name: str, connection_url: str
    ) -> bool:
        """Make a PENDING lab RUNNING; False when it is no longer wanted, or another create took it over.

        A lab that is RUNNING under the same Pod counts as made: an earlier commit of ours, whose
        answer was lost, or a duplicate of this task.
        """

        def change(cursor: Cursor) -> tuple[bool, Ending | None]:
            values = {"lab": lab_instance_id, "pod": pod_name, "url": connection_url}
            cursor.execute(_START, _ids(record) | values)
            if row := cursor.fetchone():
                return True, Ending("succeeded", result=lab_result(lab_instance_id, LabState(*row)))
            found = read_lab(cursor, lab_instance_id)
            if found is None or found.status != "RUNNING" or found.k8s_pod_name != pod_name:
                return False, None
            return True, Ending("noop", result=lab_result(lab_instance_id, found))

        return self._end(record, change)

    def mark_failed(self, record: TaskRunRecord, error: JobError, *, outcome: str) -> bool:
        """Make a PENDING lab FAILED with its reason; False when it was not PENDING, or is another create's.

        The ledger row is written in either case; whom to tell is committed with the lab's row.
        """

        def change(cursor: Cursor) -> tuple[bool, Ending | None]:
            cursor.execute(_FAIL, _ids(record) | failed_because(error, task_id=record.task_id))
            changed = cursor.rowcount == 1
            if changed:
                _tell(cursor, record, error)
            return changed, Ending.of_error(outcome, error)

        return self._end(record, change)

    def mark_lost(
        self,
        record: TaskRunRecord,
        error: JobError,
        *,
        status: str,
        pod_name: str | None,
        as_of: datetime,
        max_restarts: int = 0,
    ) -> bool:
        """Make a lab FAILED that is not what its row says; False when something happened to it since `as_of`,
        a container is at it, or another transaction holds its row.

        `status` and `pod_name` are those of the row as it was read then. The run has succeeded with it, and
        whom to tell is committed with the lab's row; so is a lab in its place, if fewer than `max_restarts`
        were in a row, and its id is in the record's details then.
        """

        def change(cursor: Cursor) -> tuple[bool, Ending | None]:
            read_then = {"lab": record.lab_instance_id, "status": status, "pod": pod_name, "as_of": as_of}
            from jobs.database.restarts import start_again

            cursor.execute(_LOSE, read_then | failed_because(error))
            if cursor.rowcount != 1:
                return False, None
            record.details.pop("started_again_as", None)
            # Optional, or the lab would stay RUNNING because of a column that a backend added.
            if max_restarts and (
                again := optional(cursor, lambda: start_again(cursor, record, error, max_restarts))
            ):
                record.details["started_again_as"] = again
            _tell(cursor, record, error)
            return True, Ending("succeeded", cause=error.failure.cause, evidence=error.evidence)

        return self._end(record, change)

    def mark_cancelled(self, record: TaskRunRecord, sentence: str) -> bool:
        """Make a PENDING lab STOPPED because its start was cancelled; answer and record as `mark_failed`."""

        def change(cursor: Cursor) -> tuple[bool, Ending | None]:
            cursor.execute(_CANCEL, {"sentence": sentence} | _ids(record))
            ending = Ending("revoked", error_message=sentence, cause=Failure.CANCELLED.cause)
            return cursor.rowcount == 1, ending

        return self._end(record, change)

    def request_stop(self, lab_instance_id: int, *, asked_at: datetime | None = None) -> LabState | None:
        """Set the tombstone, which no later create can pass, and return the lab.

        If the lab was lost after `asked_at` and started again, the lab in its place is stopped as well.
        """

        def change(cursor: Cursor) -> LabState | None:
            cursor.execute(_REQUEST_STOP, (lab_instance_id,))
            lab = read_lab(cursor, lab_instance_id)
            if lab and lab.status == "FAILED" and asked_at:
                from jobs.database.restarts import stop_in_its_place

                stop_in_its_place(cursor, lab_instance_id, asked_at)
            return lab

        return self.transaction(change)

    def mark_stopped(self, record: TaskRunRecord, lab_instance_id: int, *, deleted: int) -> bool:
        """Make the lab STOPPED; False when it already was and nothing had to be deleted."""

        def change(cursor: Cursor) -> tuple[bool, Ending | None]:
            cursor.execute(_STOP, (lab_instance_id,))
            changed = cursor.rowcount == 1
            known = changed or read_lab(cursor, lab_instance_id) is not None
            result = {"lab_instance_id": lab_instance_id, "status": "STOPPED" if known else None}
            done = changed or deleted > 0
            return done, Ending("succeeded" if done else "noop", result=result)

        return self._end(record, change)

    def change_url(
        self, lab_instance_id: int, *, pod_name: str | None, seen: str | None, connection_url: str
    ) -> bool:
        """Say where a lab is reached by now; False: its Pod or its URL is not the one seen any more."""
        values = (connection_url, lab_instance_id, pod_name, seen)

        def change(cursor: Cursor) -> bool:
            cursor.execute(_CHANGE_URL, values)
            return cursor.rowcount == 1

        return self.at_once(change)

    def record(self, record: TaskRunRecord, ending: Ending) -> None:
        """End a run that changed no lab."""
        self._end(record, lambda _cursor: (True, ending))

    def record_failed_stop(self, record: TaskRunRecord, error: JobError) -> None:
        """End a delete that failed for good; whom to tell is committed with it."""

        def change(cursor: Cursor) -> tuple[bool, Ending | None]:
            _tell(cursor, record, error, event_type=EventType.STOP_FAILED)
            return True, Ending.of_error("dead_lettered", error)

        self._end(record, change)

    def _end(self, record: TaskRunRecord, change: Callable[[Cursor], tuple[bool, Ending | None]]) -> bool:
        """Change a lab and end the run in one transaction; without an ending the run goes on."""

        def work(cursor: Cursor) -> tuple[bool, Ending | None]:
            changed, ending = change(cursor)
            if ending:
                write_ending(cursor, record, ending)
            return changed, ending

        changed, ending = self.transaction(work)
        record.ending = ending or record.ending
        return changed


def _tell(
    cursor: Cursor, record: TaskRunRecord, error: JobError, *, event_type: str = EventType.LAB_FAILED
) -> None:
    """Note whom to tell; the change is committed without it should the database refuse the row."""
    from jobs.database.notifications import add_failure  # which no lab that starts needs

    lab, task_id = record.lab_instance_id, record.task_id
    record.notification_id = optional(
        cursor,
        lambda: add_failure(cursor, error, task_id=task_id, lab_instance_id=lab, event_type=event_type),
    )


def _ids(record: TaskRunRecord) -> dict[str, Any]:
    return {"run_id": record.run_id, "task_id": record.task_id, "lab": record.lab_instance_id}


def lab_result(lab_instance_id: int, lab: LabState) -> dict[str, Any]:
    return {
        "lab_instance_id": lab_instance_id,
        "status": lab.status,
        "k8s_pod_name": lab.k8s_pod_name,
        "connection_url": lab.connection_url,
    }
