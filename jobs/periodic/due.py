"""Which labs are to end now, and why: by their time, their age, for want of a start, or once more.

All times are compared by the database's clock. What is found is judged by jobs.verify.safety_limits first;
each lab is looked at again, under its lock, before it is ended.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dispatcher.expiry import STOP_PATIENCE_MINUTES
from dispatcher.tasks import CREATE_LAB_POD
from jobs.database.connection import Cursor
from jobs.database.ledger import may_go_on
from jobs.life_settings import LifeSettings
from jobs.periodic.warnings import ENDS_AT, ENDS_SOON

#: Minutes that a student has after a warning, at least, for the end to count as announced.
ANNOUNCED_MINUTES = 3
#: The same, as a share of the longest warning, for labs whose end was known for longer: a bad UPDATE of all
#: ends is warned of as well, but late.
ANNOUNCED_SHARE = 0.5
#: Minutes after its start until which a lab is warned of an end that was near from the beginning.
ANNOUNCED_AT_ONCE_MINUTES = 2


class Reason(str, enum.Enum):
    """Why a lab is to end."""

    #: RUNNING past its expires_at.
    EXPIRED = "expired"
    #: RUNNING for longer than max_age_minutes, and not past its expires_at.
    MAX_AGE = "max_age"
    #: PENDING for longer than pending_limit_minutes.
    OVERDUE = "overdue"
    #: Its stop was asked for long ago, and did nothing.
    STOP_REPEATED = "stop_repeated"


@dataclass(frozen=True, slots=True)
class DueLab:
    """A lab that is to end."""

    id: int
    k8s_pod_name: str | None
    stop_requested_at: datetime | None
    reason: Reason
    #: This end was known in time, so that its student could be told of it.
    announced: bool
    #: A container has been at it; or its own end has come, after which nobody may start it.
    surely_not_ahead: bool

    @property
    def unannounced(self) -> bool:
        """True: somebody loses a lab, or the place in a queue, and it was not known before."""
        return self.reason is not Reason.STOP_REPEATED and not self.announced


# One list for look and lock: a lab that changes in between is judged again. The first WHEN that holds counts,
# and only those of a lab that may be due ask other tables. The limit of a lab that is asked for ahead counts
# from the time for which it is asked, as far as the outbox knows it.
_REASON = f"""
CASE
 WHEN stop_requested_at IS NOT NULL THEN
  CASE WHEN stop_requested_at < now() - interval '{STOP_PATIENCE_MINUTES} minutes'
    AND NOT EXISTS (SELECT FROM task_outbox WHERE lab_instance_id = lab.id) THEN 'stop_repeated' END
 WHEN status = 'RUNNING' THEN
  CASE WHEN expires_at < now() THEN 'expired' WHEN {ENDS_AT} < now() THEN 'max_age' END
 WHEN created_at < now() - make_interval(mins => %(pending_limit)s)
  AND NOT EXISTS (SELECT FROM task_outbox WHERE lab_instance_id = lab.id
                  AND eta > now() - make_interval(mins => %(pending_limit)s))
  AND NOT EXISTS (SELECT FROM task_ledger AS run WHERE lab_instance_id = lab.id AND {may_go_on("run")})
  THEN 'overdue'
END
"""  # noqa: S608  # constants of this module
# That a warning was made shows that the end was known, whatever became of it: a broker that is away is no
# reason to keep a class running, and what a jumped clock ends has none. A lab that still has time of its own
# ends by its age alone: a slip in that setting must not end a class, be it warned or not.
_ANNOUNCED = f"""
(reason <> 'max_age' OR expires_at = 'infinity') AND
EXISTS (SELECT FROM notifications WHERE coalesce(lab_instance_id, 0) = lab.id
 AND event_type = '{ENDS_SOON}' AND occasion IN (expires_at, {ENDS_AT})
 AND created_at < now() - interval '{ANNOUNCED_MINUTES} minutes'
 AND (created_at <= occasion - {ANNOUNCED_SHARE} * make_interval(mins => %(longest_warning)s)
  OR occasion = extended_to
  OR created_at <= started_at + interval '{ANNOUNCED_AT_ONCE_MINUTES} minutes'))
"""
_NOT_AHEAD = f"""
expires_at < now() OR EXISTS (SELECT FROM task_ledger WHERE lab_instance_id = lab.id
 AND task_name = '{CREATE_LAB_POD}')
"""
_LIVE = "status IN ('PENDING', 'RUNNING')"
_FIND = f"""
SELECT id, k8s_pod_name, stop_requested_at, reason, {_ANNOUNCED}, reason <> 'overdue' OR {_NOT_AHEAD}
FROM (SELECT *, {_REASON} AS reason FROM lab_instances AS lab WHERE {_LIVE}) AS lab
WHERE reason IS NOT NULL ORDER BY id
"""  # noqa: S608
_LOCK = f"""
SELECT id, k8s_pod_name, stop_requested_at, {_REASON} FROM lab_instances AS lab
WHERE {_LIVE} AND id = ANY(%(ids)s) AND {_REASON} IS NOT NULL ORDER BY id FOR UPDATE SKIP LOCKED
"""  # noqa: S608
_COUNT_LIVE = f"SELECT count(*) FROM lab_instances WHERE {_LIVE} AND stop_requested_at IS NULL"  # noqa: S608


def find_due(cursor: Cursor, settings: LifeSettings) -> list[DueLab]:
    """Return the labs that are to end now, by id."""
    cursor.execute(_FIND, _limits(settings))
    return [
        DueLab(lab, pod, asked, Reason(reason), announced, not_ahead)
        for lab, pod, asked, reason, announced, not_ahead in cursor.fetchall()
    ]


def count_live(cursor: Cursor) -> int:
    """Return how many labs there are that nobody stops."""
    cursor.execute(_COUNT_LIVE)
    return int(cursor.fetchall()[0][0])


def lock_due(
    cursor: Cursor, settings: LifeSettings, ids: Sequence[int]
) -> list[tuple[int, str | None, datetime | None, Reason]]:
    """Lock those of the labs that are still to end: id, Pod, the stop that is repeated, why.

    What another transaction holds is left out: another cleanup ends it, an extension keeps it, and what
    neither does the next cleanup finds again.
    """
    cursor.execute(_LOCK, {"ids": [*ids], **_limits(settings)})
    return [(lab, pod, asked, Reason(reason)) for lab, pod, asked, reason in cursor.fetchall()]


def _limits(settings: LifeSettings) -> dict[str, Any]:
    return {
        "max_age": settings.max_age_minutes,
        "pending_limit": settings.pending_limit_minutes,
        "longest_warning": max(settings.warn_minutes, default=0),
    }
