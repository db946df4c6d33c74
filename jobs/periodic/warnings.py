"""lab.ends_soon: a student is told that a lab is about to end, once for each end and each warning.

A lab whose end was moved is warned of again. Of two warnings that are due at once only the nearer one is
given, so that whoever was away does not tell of the same end twice.
"""

from __future__ import annotations

import logging

from dispatcher.failure_contract import Audience
from jobs.database.connection import Cursor
from jobs.database.lab_store import LabStore
from jobs.life_settings import LifeSettings

logger = logging.getLogger(__name__)

ENDS_SOON = "lab.ends_soon"
# NULL, which least() passes over, where there is no limit. What an extension confirmed is not taken back.
_AGE_LIMIT = (
    "CASE WHEN %(max_age)s > 0 AND started_at IS NOT NULL"
    " THEN greatest(started_at + make_interval(mins => %(max_age)s), extended_to) END"
)
#: When a RUNNING lab ends. The age is not written into its row: a slip in the setting goes with the setting.
ENDS_AT = f"least(expires_at, {_AGE_LIMIT})"

# One statement for all labs: a class of hundreds ends at the same minute. The minutes left are rounded up,
# as a person counts; what is left of the maximum is rounded down, because it is an offer.
_ADD = f"""
INSERT INTO notifications (event_type, lab_instance_id, cause, occasion, told, message, facts, task_id)
SELECT '{ENDS_SOON}', id, 'ends_in_' || warned || '_minutes', ends_at, '{Audience.STUDENT.value}',
 'This lab ends in ' || minutes || CASE minutes WHEN 1 THEN ' minute' ELSE ' minutes' END
 || to_char(ends_at AT TIME ZONE 'UTC', ', at HH24:MI "UTC".')
 || CASE WHEN possible > 0 THEN ' It can be extended.' ELSE ' It cannot be extended any more.' END,
 jsonb_build_object('minutes_left', minutes, 'ends_at', {{ends_at}}, 'latest_end_at', {{latest_end_at}}),
 coalesce(celery_task_id, '')
FROM (
 SELECT *, CAST(ceil(extract(epoch FROM ends_at - now()) / 60) AS int) AS minutes,
  floor(extract(epoch FROM latest - ends_at) / 60) AS possible,
  (SELECT min(warning) FROM unnest(CAST(%(minutes)s AS int[])) AS warning
   WHERE ends_at <= now() + make_interval(mins => warning)) AS warned
 FROM (SELECT *, {ENDS_AT} AS ends_at,
   CASE WHEN {ENDS_AT} < expires_at THEN {ENDS_AT}
    ELSE greatest(expires_at, least(max_expires_at, '9999-01-01Z')) END AS latest
  FROM lab_instances WHERE status = 'RUNNING' AND stop_requested_at IS NULL) AS running
 WHERE ends_at > now() AND ends_at <= now() + make_interval(mins => %(first)s)
) AS lab
ON CONFLICT (coalesce(lab_instance_id, 0), cause, coalesce(occasion, '-infinity')) DO NOTHING
"""  # noqa: S608  # constants of this module
_JSON_TIME = """to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"+00:00"')"""
_ANNOUNCE = _ADD.format(ends_at=_JSON_TIME.format("ends_at"), latest_end_at=_JSON_TIME.format("latest"))
# Whoever was not told until the end need not be told after it.
_DROP = f"""
UPDATE notifications SET next_attempt_at = '9999-01-01Z', last_error = 'its time was over'
WHERE (published_at IS NULL OR webhook_at IS NULL) AND next_attempt_at < '9999-01-01Z'
 AND event_type = '{ENDS_SOON}' AND occasion < now()
"""  # noqa: S608


def announce_ends(labs: LabStore, settings: LifeSettings) -> int:
    """Insert what students are to be told, for the sweep to deliver, and return how many. Raises JobError.

    Without any warn_minutes nobody is warned.
    """
    if not settings.warn_minutes:
        return 0
    values = {
        "minutes": settings.warn_minutes,
        "first": max(settings.warn_minutes),
        "max_age": settings.max_age_minutes,
    }

    def announce(cursor: Cursor) -> tuple[int, int]:
        cursor.execute(_ANNOUNCE, values)
        added = cursor.rowcount
        cursor.execute(_DROP)
        return added, cursor.rowcount

    added, dropped = labs.transaction(announce)
    if added or dropped:
        extra = {"action": "ends_announced", "warnings": added, "too_late": dropped}
        logger.info("students are warned of the end of %d labs", added, extra=extra)
    return added
