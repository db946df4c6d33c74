"""Write and read the task ledger, a row for each run from its beginning on, and forget what is old."""

from __future__ import annotations

import json
import logging
import resource
import time
import uuid
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from dispatcher.failure_contract import CONTAINER_DEADLINE_S
from dispatcher.task_status import lock_task
from dispatcher.tasks import (
    CLEANUP_TIMEOUT_LABS,
    CREATE_LAB_POD,
    HEALTH_CHECK_PODS,
    MAX_DELAY_S,
    SCALE_LAB_RESOURCES,
    SYNC_LAB_STATUS,
)
from jobs.database.connection import Cursor, Database
from jobs.errors import JobError

#: Task name in the ledger of a repair of `autolabs verify`.
VERIFY_TASK = "autolabs.verify"
#: Days after which nobody needs the cancellation of a task that is over.
KEEP_CANCELLATIONS_DAYS = 30
#: Rows that one cleanup deletes of each kind, the oldest first; what is left, the next one deletes.
FORGET_ROWS = 1000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a run, as the ledger and the result of the task say it."""

    #: As dispatcher.models.Outcome.
    outcome: str
    error_category: str | None = None
    error_message: str | None = None
    #: As jobs.failures.Failure.cause.
    cause: str | None = None
    evidence: str = ""
    #: Result of a success, for whoever waits for the task.
    result: dict[str, Any] | None = None

    @classmethod
    def of_error(cls, outcome: str, error: JobError) -> Ending:
        return cls(
            outcome, error.category.value, error.sentence, cause=error.failure.cause, evidence=error.evidence
        )


@dataclass(slots=True)
class TaskRunRecord:
    """The row of this container in the ledger, as it is to be and as it was written last."""

    task_id: str
    task_name: str
    # The defaults are those of work that no message asked for.
    attempt: int = 1
    redelivered: bool = False
    queue: str = ""
    job_name: str | None = None
    pod_name: str | None = None
    published_at: datetime | None = None
    lab_instance_id: int | None = None
    claimed_monotonic: float = field(default_factory=time.monotonic)
    details: dict[str, Any] = field(default_factory=dict)
    #: Chosen here, so that a statement repeated after a lost answer writes no second row.
    run_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    #: As it was committed last, or as it would be if the database had taken it.
    ending: Ending | None = None
    #: The row that tells of the failed lab (jobs.database.notifications).
    notification_id: int | None = None


def may_go_on(run: str) -> str:
    """Return the SQL condition of a run, by its table's alias, that a container may still be at.

    The row of one that was killed stays `started`; it is over once another run of its task has ended.
    """
    return (
        f"({run}.outcome = 'started' AND {run}.claimed_at > now() - interval '{CONTAINER_DEADLINE_S} seconds'"
        f" AND NOT EXISTS (SELECT FROM task_ledger AS later WHERE later.task_id = {run}.task_id"
        f" AND later.id > {run}.id AND later.outcome <> 'started'))"
    )


# Tell whether a task was cancelled (a condition).
CANCELLED = "EXISTS (SELECT FROM task_cancellations WHERE task_id = %(task_id)s)"
_FIELDS = (
    *("run_id", "task_id", "task_name", "lab_instance_id", "attempt", "redelivered", "queue", "job_name"),
    *("pod_name", "published_at"),
)
_COLUMNS = f"{', '.join(_FIELDS)}, claimed_at"
_VALUES = (
    f"{', '.join(f'%({field})s' for field in _FIELDS)}, clock_timestamp() - make_interval(secs => %(age_s)s)"
)
# Begin a run, unless its task was cancelled. A repeated begin finds its own row and has begun, whatever was
# cancelled since.
_BEGIN = f"""
{lock_task("%(task_id)s")};
INSERT INTO task_ledger ({_COLUMNS}, outcome, details) SELECT {_VALUES}, 'started', %(details)s
 WHERE NOT {CANCELLED} OR EXISTS (SELECT FROM task_ledger WHERE run_id = %(run_id)s)
ON CONFLICT (run_id) DO UPDATE SET run_id = excluded.run_id
"""  # noqa: S608  # constants of this module
# End a run. The first ending stands: it was committed with the lab, and the second is a repetition.
_END = f"""
INSERT INTO task_ledger ({_COLUMNS}, finished_at, outcome, error_category, error_message, details)
VALUES ({_VALUES}, clock_timestamp(), %(outcome)s, %(error_category)s, %(error_message)s, %(details)s)
ON CONFLICT (run_id) DO UPDATE SET finished_at = excluded.finished_at, outcome = excluded.outcome,
 error_category = excluded.error_category, error_message = excluded.error_message,
 details = excluded.details WHERE task_ledger.outcome = 'started'
"""  # noqa: S608
# Read why an attempt was dead-lettered.
_DEAD_LETTER = """
SELECT details ->> 'cause', coalesce(error_message, ''), coalesce(details ->> 'evidence', '')
  FROM task_ledger WHERE task_id = %s AND attempt = %s AND outcome = 'dead_lettered'
   AND details ? 'cause' ORDER BY id DESC LIMIT 1
"""
# Tell whether a run of a task has succeeded.
_SUCCEEDED = "SELECT EXISTS (SELECT FROM task_ledger WHERE task_id = %s AND outcome = 'succeeded')"
# Read what was asked for a lab. The last change of its resources counts as well, also one that an attempt
# found done by the one before it.
_REQUEST = """
SELECT (SELECT details -> 'request' FROM task_ledger WHERE lab_instance_id = %(lab)s
         AND task_name = %(create)s AND outcome = 'succeeded' ORDER BY id DESC LIMIT 1),
 (SELECT details -> 'request' -> 'new_resources' FROM task_ledger WHERE lab_instance_id = %(lab)s
   AND task_name = %(scale)s AND (outcome = 'succeeded'
   OR outcome = 'noop' AND details -> 'result' -> 'after' IS NOT NULL) ORDER BY id DESC LIMIT 1)
"""
# Delete old cancellations. A task that never came may still wait for its time, as long as the ladder lets it.
_FORGET_CANCELLATIONS = """
DELETE FROM task_cancellations WHERE task_id IN (
    SELECT task_id FROM task_cancellations AS cancelled
    WHERE requested_at < now() - make_interval(days => %s) AND (
        requested_at < now() - make_interval(secs => %s)
        OR EXISTS (SELECT FROM task_ledger WHERE task_ledger.task_id = cancelled.task_id
                   AND outcome NOT IN ('started', 'retried')))
    LIMIT %s)
"""
# Delete old runs of a periodic task. By the index that history is read by, from its old end: no look at what
# is to stay. A run about one lab, as a repair of sync, is part of that lab's story.
_FORGET_RUNS = """
DELETE FROM task_ledger WHERE id IN (
    SELECT id FROM (SELECT id, claimed_at FROM task_ledger
                    WHERE task_name = %s AND lab_instance_id IS NULL ORDER BY id LIMIT %s) AS oldest
    WHERE claimed_at < now() - make_interval(days => %s))
"""


def find_dead_letter(database: Database, task_id: str, attempt: int) -> tuple[str, str, str] | None:
    """Return cause, sentence and evidence of an attempt that ended, or was to end, in the dead letters."""
    rows = database.fetch(_DEAD_LETTER, (task_id, attempt))
    return (rows[0][0], rows[0][1], rows[0][2]) if rows else None


def has_succeeded(database: Database, task_id: str) -> bool:
    """Tell whether a run of a task has succeeded, whose acknowledgement was lost then."""
    return bool(database.fetch(_SUCCEEDED, (task_id,))[0][0])


def last_request(cursor: Cursor, lab_instance_id: int) -> dict[str, Any] | None:
    """Return the arguments of the create that started a lab, with its resources of now; None: not known."""
    values = {"lab": lab_instance_id, "create": CREATE_LAB_POD, "scale": SCALE_LAB_RESOURCES}
    cursor.execute(_REQUEST, values)
    ((request, resized),) = cursor.fetchall()
    if not isinstance(request, dict):
        return None
    if isinstance(resized, dict):
        request = {**request, "resources": {**(request.get("resources") or {}), **resized}}
    return request


def insert_started(cursor: Cursor, record: TaskRunRecord) -> bool:
    cursor.execute(_BEGIN, _run_values(record, record.details))
    return cursor.rowcount == 1


def write_ending(cursor: Cursor, record: TaskRunRecord, ending: Ending) -> None:
    said = {"cause": ending.cause or None, "evidence": ending.evidence or None, "result": ending.result}
    details = record.details | {"usage": _usage()}
    details |= {name: value for name, value in said.items() if value is not None}
    cursor.execute(_END, asdict(ending) | _run_values(record, details))


def forget_old_rows(database: Database, keep_periodic_runs_days: int) -> None:
    """Delete what is older than it is kept. Raises JobError."""

    def forget(cursor: Cursor) -> tuple[int, int]:
        cursor.execute(_FORGET_CANCELLATIONS, (KEEP_CANCELLATIONS_DAYS, MAX_DELAY_S, FORGET_ROWS))
        cancellations, runs = cursor.rowcount, 0
        for name in (CLEANUP_TIMEOUT_LABS, HEALTH_CHECK_PODS, SYNC_LAB_STATUS):
            cursor.execute(_FORGET_RUNS, (name, FORGET_ROWS, keep_periodic_runs_days))
            runs += cursor.rowcount
        return cancellations, runs

    cancellations, runs = database.transaction(forget)
    if cancellations or runs:
        extra = {"action": "old_rows_forgotten", "cancellations": cancellations, "runs": runs}
        logger.info("old rows are forgotten", extra=extra)


def _run_values(record: TaskRunRecord, details: dict[str, Any]) -> dict[str, Any]:
    age_s = time.monotonic() - record.claimed_monotonic
    return {
        **{name: getattr(record, name) for name in _FIELDS},
        "age_s": age_s,
        "details": json.dumps(details),
    }


def _usage() -> dict[str, float]:
    """Return what this process has cost so far: CPU seconds, and peak resident memory in MiB."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_s": round(used.ru_utime + used.ru_stime, 3),
        "peak_mib": round(used.ru_maxrss / 1024, 1),  # Linux reports KiB
    }
