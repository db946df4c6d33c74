"""Find labs that are to end now or soon: by their time, their age, for want of a start, or once more.

All times are compared by the database's clock. A cleanup judges what is found by its limits first, and looks
at each lab again, under its lock, before it ends it. Its student is warned before: lab.ends_soon, once for
each end and each warning. A lab whose end was moved is warned of again; of two warnings that are due at once
only the nearer one is given, so that whoever was away does not tell of the same end twice.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dispatcher.failure_contract import Audience, EventType
from dispatcher.lab_time import STOP_PATIENCE_MINUTES
from dispatcher.tasks import CREATE_LAB_POD
from jobs.database.connection import Cursor, Database
from jobs.database.lab_rows import MAKE_FAILED, SET_TOMBSTONE, failed_because
from jobs.database.ledger import may_go_on
from jobs.database.notifications import UNDELIVERED, insert_notifications
from jobs.errors import JobError

if TYPE_CHECKING:
    from jobs.config.lifetimes import LifeSettings

logger = logging.getLogger(__name__)

_ENDS_SOON = EventType.ENDS_SOON
#: Minutes that a student has after a warning, at least, for the end to count as announced.
ANNOUNCED_MINUTES = 3
#: Share of the longest warning that a student has, at least, where an end was known for longer: a bad UPDATE
#: of all ends is warned of as well, but late.
ANNOUNCED_SHARE = 0.5
#: Minutes after its start until which a lab is warned of an end that was near from the beginning.
ANNOUNCED_AT_ONCE_MINUTES = 2


class Reason(str, enum.Enum):
    """A reason for which a lab is to end."""

    #: RUNNING past its expires_at.
    EXPIRED = "expired"
    #: RUNNING for longer than max_age_minutes, and not past its expires_at.
    MAX_AGE = "max_age"
    #: PENDING for longer than pending_limit_minutes.
    OVERDUE = "overdue"
    #: The lab's stop was asked for long ago, and did nothing.
    STOP_REPEATED = "stop_repeated"


@dataclass(frozen=True, slots=True)
class DueLab:
    """A lab that is to end."""

    id: int
    k8s_pod_name: str | None
    stop_requested_at: datetime | None
    reason: Reason
    #: This end was known in time, so that its student could be told of it.
    announced: bool = False
    #: A container has been at it; or its own end has come, after which nobody may start it.
    certainly_started: bool = False

    @property
    def unannounced(self) -> bool:
        """True: somebody loses a lab, or the place in a queue, and it was not known before."""
        return self.reason is not Reason.STOP_REPEATED and not self.announced


# The age at which a lab ends: NULL, which least() passes over, where there is no limit. What an extension
# confirmed is not taken back. To the last time that PostgreSQL has, nothing can be added.
_AGE_LIMIT = (
    "CASE WHEN %(max_age)s > 0 AND started_at IS NOT NULL"
    " THEN greatest(least(started_at, timestamptz '9999-01-01Z') + make_interval(mins => %(max_age)s),"
    " extended_to) END"
)
# When a RUNNING lab ends. The age is not written into its row: a slip in the setting goes with the setting.
_ENDS_AT = f"least(expires_at, {_AGE_LIMIT})"
# Why a lab is to end. One list for look and lock: a lab that changes in between is judged again. The first
# WHEN that holds counts, and only those of a lab that may be due ask other tables. The limit of a lab that is
# asked for ahead counts from the time for which it is asked, as far as the outbox knows it. A lab that was
# made in the future, by what a backend wrote, counts from the last change of its row.
_REASON = f"""
CASE
 WHEN stop_requested_at IS NOT NULL THEN
  CASE WHEN stop_requested_at < now() - interval '{STOP_PATIENCE_MINUTES} minutes'
    AND NOT EXISTS (SELECT FROM task_outbox WHERE lab_instance_id = lab.id) THEN 'stop_repeated' END
 WHEN status = 'RUNNING' THEN
  CASE WHEN expires_at < now() THEN 'expired' WHEN {_ENDS_AT} < now() THEN 'max_age' END
 WHEN least(created_at, updated_at) < now() - make_interval(mins => %(pending_limit)s)
  AND NOT EXISTS (SELECT FROM task_outbox WHERE lab_instance_id = lab.id
                  AND eta > now() - make_interval(mins => %(pending_limit)s))
  AND NOT EXISTS (SELECT FROM task_ledger AS run WHERE lab_instance_id = lab.id AND {may_go_on("run")})
  THEN 'overdue'
END
"""  # noqa: S608  # constants of this module
# Tell whether an end was announced. That a warning was made shows that the end was known, whatever became of
# it: a broker that is away is no reason to keep a class running, and what a jumped clock ends has none. A lab
# that still has time of its own ends by its age alone: a slip in that setting must not end a class, be it
# warned or not.
_ANNOUNCED = f"""
(reason <> 'max_age' OR expires_at = 'infinity') AND
EXISTS (SELECT FROM notifications WHERE coalesce(lab_instance_id, 0) = lab.id
 AND event_type = '{_ENDS_SOON}' AND occasion IN (expires_at, {_ENDS_AT})
 AND created_at < now() - interval '{ANNOUNCED_MINUTES} minutes'
 AND (created_at <= occasion - {ANNOUNCED_SHARE} * make_interval(mins => %(longest_warning)s)
  OR occasion = extended_to
  OR created_at <= started_at + interval '{ANNOUNCED_AT_ONCE_MINUTES} minutes'))
"""
# Tell whether nobody may have asked for the lab ahead of its time (a condition).
_NOT_AHEAD = f"""
expires_at < now() OR EXISTS (SELECT FROM task_ledger WHERE lab_instance_id = lab.id
 AND task_name = '{CREATE_LAB_POD}')
"""
_LIVE = "status IN ('PENDING', 'RUNNING')"
# List the labs that are to end.
_FIND = f"""
SELECT id, k8s_pod_name, stop_requested_at, reason, {_ANNOUNCED}, reason <> 'overdue' OR {_NOT_AHEAD}
FROM (SELECT *, {_REASON} AS reason FROM lab_instances AS lab WHERE {_LIVE}) AS lab
WHERE reason IS NOT NULL ORDER BY id
"""  # noqa: S608
# Lock those of some labs that are still to end.
_LOCK = f"""
SELECT id, k8s_pod_name, stop_requested_at, {_REASON} FROM lab_instances AS lab
WHERE {_LIVE} AND id = ANY(%(ids)s) AND {_REASON} IS NOT NULL ORDER BY id FOR UPDATE SKIP LOCKED
"""  # noqa: S608
# Count the labs that nobody stops.
_COUNT_LIVE = f"SELECT count(*) FROM lab_instances WHERE {_LIVE} AND stop_requested_at IS NULL"  # noqa: S608
# Set the tombstone of labs that are locked.
_STOP = f"{SET_TOMBSTONE} id = ANY(%s)"
# Make labs FAILED that are locked.
_FAIL = f"{MAKE_FAILED} id = ANY(%(ids)s) RETURNING id, coalesce(celery_task_id, '')"
# Count the tasks that are not published yet.
_COUNT_WAITING = "SELECT count(*) FROM task_outbox WHERE task_id = ANY(%s)"
# Read the clock of the database.
_CLOCK = """
SELECT CAST(extract(epoch FROM at) AS float),
 to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"+00:00"')
FROM clock_timestamp() AS at
"""


def _as_json(time: str) -> str:
    return f"""to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"+00:00"')"""


# Warn of ends that come. One statement for all labs: a class of hundreds ends at the same minute. The
# minutes left are rounded up, as a person counts; what is left of the maximum is rounded down, because it is
# an offer.
_WARN = insert_notifications(f"""
SELECT '{_ENDS_SOON}', id, 'ends_in_' || warned || '_minutes', ends_at, '{Audience.STUDENT.value}', NULL,
 'This lab ends in ' || minutes || CASE minutes WHEN 1 THEN ' minute' ELSE ' minutes' END
 || to_char(ends_at AT TIME ZONE 'UTC', ', at HH24:MI "UTC".')
 || CASE WHEN possible > 0 THEN ' It can be extended.' ELSE ' It cannot be extended any more.' END,
 jsonb_build_object('minutes_left', minutes, 'ends_at', {_as_json("ends_at")},
  'latest_end_at', {_as_json("latest")}),
 coalesce(celery_task_id, '')
FROM (
 SELECT *, CAST(ceil(extract(epoch FROM ends_at - now()) / 60) AS int) AS minutes,
  floor(extract(epoch FROM latest - ends_at) / 60) AS possible,
  (SELECT min(warning) FROM unnest(CAST(%(minutes)s AS int[])) AS warning
   WHERE ends_at <= now() + make_interval(mins => warning)) AS warned
 FROM (SELECT *, {_ENDS_AT} AS ends_at,
   CASE WHEN {_ENDS_AT} < expires_at THEN {_ENDS_AT}
    ELSE greatest(expires_at, least(max_expires_at, '9999-01-01Z')) END AS latest
  FROM lab_instances WHERE status = 'RUNNING' AND stop_requested_at IS NULL) AS running
 WHERE ends_at > now() AND ends_at <= now() + make_interval(mins => %(first)s)
) AS lab""")  # noqa: S608
# Give up the warnings of ends that are over: whoever was not told until then need not be told after it.
_DROP_WARNINGS = f"""
UPDATE notifications SET next_attempt_at = '9999-01-01Z', last_error = 'its time was over'
WHERE {UNDELIVERED} AND next_attempt_at < '9999-01-01Z' AND event_type = '{_ENDS_SOON}' AND occasion < now()
"""  # noqa: S608


def find_due(database: Database, settings: LifeSettings) -> list[DueLab]:
    return _due_labs(database.fetch(_FIND, _limits(settings)))


def count_live(database: Database) -> int:
    return int(database.fetch(_COUNT_LIVE)[0][0])


def lock_due(cursor: Cursor, settings: LifeSettings, ids: Sequence[int]) -> list[DueLab]:
    """Lock those of the labs that are still to end, and return them; whether it was announced is not asked.

    What another transaction holds is left out: another cleanup ends it, an extension keeps it, and what
    neither does the next cleanup finds again.
    """
    cursor.execute(_LOCK, {"ids": [*ids], **_limits(settings)})
    return _due_labs(cursor.fetchall())


def stop_labs(cursor: Cursor, ids: Sequence[int]) -> None:
    """Set the tombstone of labs that are locked, again if they have one."""
    cursor.execute(_STOP, ([*ids],))


def fail_labs(cursor: Cursor, ids: Sequence[int], error: JobError) -> list[tuple[int, str]]:
    """Make labs FAILED that are locked, and return each with the id of its task, if it has one."""
    cursor.execute(_FAIL, {"ids": [*ids], **failed_because(error)})
    return cursor.fetchall()


def count_waiting(database: Database, task_ids: Sequence[str]) -> int:
    return int(database.fetch(_COUNT_WAITING, ([*task_ids],))[0][0])


def clock(database: Database) -> tuple[float, str]:
    """Return the database's time, as seconds since 1970 and in words: datetime holds no year after 9999."""
    ((seconds, words),) = database.fetch(_CLOCK)
    return float(seconds), str(words)


def announce_ends(database: Database, settings: LifeSettings) -> int:
    """Insert what students are to be told, for the sweep to deliver, and return how many. Raises JobError."""
    if not settings.warn_minutes:
        return 0
    values = {
        "minutes": settings.warn_minutes,
        "first": max(settings.warn_minutes),
        "max_age": settings.max_age_minutes,
    }

    def announce(cursor: Cursor) -> tuple[int, int]:
        cursor.execute(_WARN, values)
        added = cursor.rowcount
        cursor.execute(_DROP_WARNINGS)
        return added, cursor.rowcount

    added, dropped = database.transaction(announce)
    if added or dropped:
        extra = {"action": "ends_announced", "warnings": added, "too_late": dropped}
        logger.info("students are warned of the end of %d labs", added, extra=extra)
    return added


def _due_labs(rows: Sequence[tuple[Any, ...]]) -> list[DueLab]:
    return [DueLab(lab, pod, asked, Reason(reason), *rest) for lab, pod, asked, reason, *rest in rows]


def _limits(settings: LifeSettings) -> dict[str, Any]:
    return {
        "max_age": settings.max_age_minutes,
        "pending_limit": settings.pending_limit_minutes,
        "longest_warning": max(settings.warn_minutes, default=0),
    }
