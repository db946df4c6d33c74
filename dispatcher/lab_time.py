"""Read and move the end of a lab, in a transaction of the caller's and under the lock of the lab's row.

Whoever ends labs (jobs.checks.cleanup) meets an extension at that row: one that is committed wins, and one
that comes later is told that the lab is over. Nothing in the cluster changes, because no Pod knows its end.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dispatcher.errors import (
    EndHasMoved,
    ExtensionTooLong,
    ExtensionTooShort,
    InvalidTask,
    LabIsOver,
    LabUnknown,
)
from dispatcher.failure_contract import EventType
from dispatcher.ids import MAX_ID
from dispatcher.task_status import LabTime

if TYPE_CHECKING:
    from sqlalchemy import Connection, RowMapping
    from sqlalchemy.orm import Session, scoped_session

__all__ = ["LabTime", "cleanup_task_id", "extend", "overdue_task_id", "read"]

#: Minutes between two cleanups, as settings/schedules.yaml is shipped.
CLEANUP_EVERY_MINUTES = 5
#: A stop that did nothing for so long is asked for again: its task ended in the dead-letter queue.
STOP_PATIENCE_MINUTES = 15
# The uuid5 of cleanup.autolabs as a DNS name; making it here would load OpenSSL, 4 MiB, into each backend.
_NAMESPACE = uuid.UUID("c3cfa1f6-87b4-5bc1-808b-d0832cf842d1")

#: Longest extension that one call may ask for, a year; the lab's row says how much is possible.
MAX_MINUTES = 525_600
#: Seconds by which an end that went through somebody's JSON may differ from that of the row.
_SAME_S = 1.0

# A backend may write infinity for never, or a time before year 1: more than Python's datetime can hold, whose
# engine may be a backend's own.
_FOREVER = "timestamptz '9999-01-01Z'"
_LONG_AGO = "timestamptz '0002-01-01Z'"


def _held(column: str) -> str:
    return f"greatest(least({column}, {_FOREVER}), {_LONG_AGO})"


_COLUMNS = f"""
id, status, stop_requested_at IS NOT NULL AS stopping, {_held("expires_at")} AS ends_at,
{_held("max_expires_at")} AS latest_end_at, clock_timestamp() AS now,
(SELECT count(*) FROM notifications WHERE coalesce(lab_instance_id, 0) = lab.id
 AND event_type = '{EventType.ENDS_SOON}' AND occasion = lab.expires_at) AS warnings
"""  # noqa: S608  # constants of this module
_READ = f"SELECT {_COLUMNS} FROM lab_instances AS lab WHERE id = :id"  # noqa: S608
_LOCK = f"{_READ} FOR UPDATE"
_EXTEND = f"""
UPDATE lab_instances AS lab SET expires_at = expires_at + make_interval(mins => :minutes),
 extended_to = expires_at + make_interval(mins => :minutes), updated_at = now()
WHERE id = :id RETURNING {_COLUMNS}
"""  # noqa: S608


def read(session: Session | scoped_session[Session] | Connection, lab_instance_id: int) -> LabTime:
    """Return when a lab ends. Raises LabUnknown, InvalidTask."""
    _check("lab_instance_id", lab_instance_id, MAX_ID)
    return _time(_row(session, _READ, {"id": lab_instance_id}))


def extend(
    session: Session | scoped_session[Session] | Connection,
    lab_instance_id: int,
    minutes: int,
    *,
    ends_at: datetime | None = None,
) -> LabTime:
    """Move the end of a lab by `minutes`, counted from its end as it is now; it counts once committed.

    `ends_at` is the end as the student saw it. With it a call may be repeated, after an answer that was lost
    or a second click: what has been added already is not added again.

    A lab whose end has passed is extended as well, as long as no cleanup has come by. PENDING labs too.

    Raises:
        InvalidTask: `minutes` is not a whole number from 1, or `ends_at` is not an aware time.
        LabUnknown: there is no such lab.
        LabIsOver: it is STOPPED, FAILED, or about to be stopped.
        ExtensionTooShort: it would still be past its end; `.minutes_needed` says how many help.
        ExtensionTooLong: the end would be later than the lab's latest, or no extension helps any more;
            `.minutes_possible` says what is left, 0 if nothing helps.
        EndHasMoved: it ends at another time than `ends_at`, but not as this call would have moved it.
    """
    _check("lab_instance_id", lab_instance_id, MAX_ID)
    _check("minutes", minutes, MAX_MINUTES)
    if ends_at is not None and (not isinstance(ends_at, datetime) or ends_at.utcoffset() is None):
        raise InvalidTask("ends_at", "must be an aware datetime")
    row = _row(session, _LOCK, {"id": lab_instance_id})
    found = _time(row)
    if found.status not in ("PENDING", "RUNNING") or found.stopping:
        raise LabIsOver(lab_instance_id, found)
    if ends_at is not None and abs(moved_s := (found.ends_at - ends_at).total_seconds()) >= _SAME_S:
        if abs(moved_s - 60 * minutes) < _SAME_S:
            return found
        raise EndHasMoved(lab_instance_id, found)
    needed = int((row["now"] - found.ends_at).total_seconds() // 60) + 1
    helps = needed <= min(found.minutes_possible, MAX_MINUTES)
    if minutes > found.minutes_possible or not helps:
        raise ExtensionTooLong(lab_instance_id, found, helps=helps)
    if minutes < needed:
        raise ExtensionTooShort(lab_instance_id, found, needed)
    return _time(_row(session, _EXTEND, {"id": lab_instance_id, "minutes": minutes}))


def cleanup_task_id(lab_instance_id: int, stop_requested_at: datetime | None) -> str:
    """Return the task id of a lab's cleanup, the same for two cleanups that mean the same stop.

    `stop_requested_at` is that of a stop which is repeated, None for a lab that is past its end.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{lab_instance_id} {stop_requested_at}"))


def overdue_task_id(lab_instance_id: int) -> str:
    """Return the id of the task that deletes the objects of a lab which is FAILED: it never got usable."""
    return str(uuid.uuid5(_NAMESPACE, f"{lab_instance_id} overdue"))


def _row(
    session: Session | scoped_session[Session] | Connection, statement: str, values: dict[str, int]
) -> RowMapping:
    from sqlalchemy import text

    from dispatcher.engine import connection_of
    from dispatcher.models import LabInstance

    row = connection_of(session, LabInstance).execute(text(statement), values).mappings().one_or_none()
    if row is None:
        raise LabUnknown(values["id"])
    return row


def _time(row: RowMapping) -> LabTime:
    left_s = (row["ends_at"] - row["now"]).total_seconds()
    possible_s = (row["latest_end_at"] - row["ends_at"]).total_seconds()
    live = row["status"] in ("PENDING", "RUNNING") and not row["stopping"]
    return LabTime(
        lab_instance_id=row["id"],
        status=row["status"],
        stopping=row["stopping"],
        ends_at=row["ends_at"],
        latest_end_at=row["latest_end_at"],
        minutes_left=max(0, int(left_s // 60)),
        minutes_possible=max(0, int(possible_s // 60)) if live else 0,
        warnings=row["warnings"],
    )


def _check(name: str, value: Any, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise InvalidTask(name, f"{value!r:.80} is not allowed; it must be an integer from 1 to {most}")
