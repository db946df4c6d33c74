"""Insert and take rows of `notifications`: whom to tell of what happened to a lab, committed with it.

A row is inserted once for each lab, cause and occasion, and delivered by jobs.notify.notifications.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from dispatcher.failure_contract import Audience, EventType
from jobs.database.connection import Cursor, Database
from jobs.errors import JobError
from jobs.failures import Failure

#: Seconds for which nobody else delivers a notification that somebody has taken; longer than it takes.
LEASE_S = 60
#: Longest error of a delivery that is kept, in characters.
_MAX_ERROR = 500


def insert_notifications(rows: str) -> str:
    """Return the statement that inserts these rows, as VALUES or SELECT, but for those that are there.

    It returns each new row's id and lab.
    """
    return f"""
INSERT INTO notifications
 (event_type, lab_instance_id, cause, occasion, told, error_category, message, facts, task_id)
{rows}
ON CONFLICT (coalesce(lab_instance_id, 0), cause, coalesce(occasion, '-infinity')) DO NOTHING
RETURNING id, lab_instance_id
"""  # constants of the callers


# Add one notification.
_ADD = insert_notifications("VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)")
# Tell of programs that were ended for want of memory, once an hour and lab: the kubelet starts one that
# always needs too much a dozen times an hour.
_ADD_OUT_OF_MEMORY = insert_notifications(
    "SELECT 'lab.out_of_memory', lab, %(cause)s, hour, %(told)s, %(category)s, %(message)s, '{}', %(task_id)s"
    " FROM unnest(CAST(%(labs)s AS bigint[]), CAST(%(hours)s AS timestamptz[])) AS killed (lab, hour)"
)
# Tell whether something of a notification is not delivered (a condition).
UNDELIVERED = "(published_at IS NULL OR webhook_at IS NULL)"
# The columns of Notification; the lab's ids are those of its row, if that is still there.
_COLUMNS = """
id, event_type, lab_instance_id,
(SELECT lab_id FROM lab_instances AS lab WHERE lab.id = lab_instance_id),
(SELECT student_id FROM lab_instances AS lab WHERE lab.id = lab_instance_id),
cause, occasion, error_category, told, message, facts, task_id, created_at,
published_at IS NOT NULL, webhook_at IS NOT NULL, failures,
CAST(extract(epoch FROM clock_timestamp() - created_at) AS float), last_error
"""
# Take a notification that is due. Whoever moves next_attempt_at has it; a lease rather than a lock, because
# no transaction is to stay open while a webhook is waited for.
_TAKE = f"""
UPDATE notifications SET next_attempt_at = clock_timestamp() + interval '{LEASE_S} seconds'
WHERE id = (SELECT id FROM notifications
  WHERE {UNDELIVERED} AND next_attempt_at <= clock_timestamp() AND id = coalesce(%s, id)
  ORDER BY next_attempt_at, id LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING {_COLUMNS}
"""  # noqa: S608
# List what is not delivered yet.
_WAITING = f"""
SELECT {_COLUMNS} FROM notifications WHERE {UNDELIVERED} AND next_attempt_at < '9999-01-01Z'
ORDER BY id LIMIT 1000
"""  # noqa: S608
# Note how a delivery ended. What another has delivered meanwhile, after the lease of a slow one ran out,
# stays delivered.
_SETTLE = """
UPDATE notifications SET
 published_at = CASE WHEN %(published)s THEN coalesce(published_at, clock_timestamp())
  ELSE published_at END,
 webhook_at = CASE WHEN %(called)s THEN coalesce(webhook_at, clock_timestamp()) ELSE webhook_at END,
 failures = failures + %(failed)s, last_error = %(error)s,
 next_attempt_at = coalesce(clock_timestamp() + make_interval(secs => %(delay_s)s), '9999-01-01Z')
WHERE id = %(id)s
"""


@dataclass(slots=True)
class Notification:
    """A row of `notifications`, with the lab's ids; these are None once the lab's row is gone."""

    row_id: int
    event_type: str
    lab_instance_id: int | None
    lab_id: int | None
    student_id: int | None
    cause: str
    occasion: datetime | None
    category: str | None
    told: str
    message: str
    facts: dict[str, Any]
    task_id: str
    occurred_at: datetime
    published: bool
    called: bool
    failures: int
    age_s: float
    last_error: str | None

    @property
    def id(self) -> str:
        """Return the id by which receivers know it."""
        event = self.event_type.replace(".", "-").replace("_", "-")
        lab = () if self.lab_instance_id is None else (str(self.lab_instance_id),)
        occasion = f"{self.occasion.astimezone(timezone.utc):%Y%m%dT%H%M%S}" if self.occasion else None
        return "-".join((event, *lab, self.cause, *((occasion,) if occasion else ())))

    def body(self) -> bytes:
        occurred_at = self.occurred_at.astimezone(timezone.utc).isoformat(timespec="milliseconds")
        event = {
            "id": self.id,
            "type": self.event_type,
            "occurred_at": occurred_at,
            "lab_instance_id": self.lab_instance_id,
            "lab_id": self.lab_id,
            "student_id": self.student_id,
            "cause": self.cause,
            "category": self.category,
            "told": self.told,
            "message": self.message,
            "task_id": self.task_id,
        }
        return json.dumps(event | self.facts).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewNotification:
    """A notification to insert; there is one for each lab, cause and occasion."""

    event_type: str
    cause: str
    audience: Audience
    message: str
    task_id: str
    lab_instance_id: int | None = None
    #: None: it happens once.
    occasion: datetime | None = None
    category: str | None = None
    #: Further fields of the event: names and JSON values.
    facts: dict[str, Any] = field(default_factory=dict)


def add_notification(cursor: Cursor, news: NewNotification) -> int | None:
    """Insert what somebody is to be told of, in the caller's transaction; None: nobody is, or already was."""
    if news.audience is Audience.NOBODY:
        return None
    about = (news.event_type, news.lab_instance_id, news.cause, news.occasion, news.audience.value)
    cursor.execute(_ADD, (*about, news.category, news.message, json.dumps(news.facts), news.task_id))
    row = cursor.fetchone()
    return row[0] if row else None


def add_failure(
    cursor: Cursor,
    error: JobError,
    *,
    task_id: str,
    lab_instance_id: int | None,
    event_type: str = EventType.LAB_FAILED,
) -> int | None:
    """Insert whom to tell of a failure, as `add_notification` does."""
    news = NewNotification(
        event_type=event_type,
        cause=error.failure.cause,
        audience=error.failure.audience,
        message=error.sentence,
        task_id=task_id,
        lab_instance_id=lab_instance_id,
        category=error.category.value,
    )
    return add_notification(cursor, news)


def add_out_of_memory(
    database: Database, killed: Collection[tuple[int, datetime]], *, message: str, task_id: str
) -> list[int]:
    """Insert whom to tell of labs with a program that was ended for want of memory, by the hour; return those
    labs of which it was not told yet.
    """
    failure = Failure.OUT_OF_MEMORY
    values = {
        "labs": [lab for lab, _ in killed],
        "hours": [hour for _, hour in killed],
        "cause": failure.cause,
        "told": failure.audience.value,
        "category": failure.category.value,
        "message": message,
        "task_id": task_id,
    }
    return [lab for _, lab in database.fetch(_ADD_OUT_OF_MEMORY, values)]


def take(database: Database, row_id: int | None = None) -> Notification | None:
    """Take the notification, or whichever is due, from everybody else for LEASE_S; None: there is none."""
    rows = database.fetch(_TAKE, (row_id,))
    return Notification(*rows[0]) if rows else None


def settle(
    database: Database, found: Notification, *, failed: bool, error: str, delay_s: float | None
) -> None:
    """Note what of a notification is delivered, and when it is tried again; never, without a delay."""
    values = {
        "id": found.row_id,
        "published": found.published,
        "called": found.called,
        "failed": int(failed),
        "error": error[:_MAX_ERROR] or None,
        "delay_s": delay_s,
    }
    database.at_once(lambda cursor: cursor.execute(_SETTLE, values))


def waiting(database: Database) -> list[Notification]:
    """Return what is not delivered yet, the oldest first."""
    return [Notification(*row) for row in database.fetch(_WAITING)]
