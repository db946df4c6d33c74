"""Whom to tell of what happened to a lab: one row per lab and cause, committed with it.

The container that made it delivers it after its message is acknowledged; what it could not do, or was
killed over, the sweep of the outbox does. At least once, hence the `id` of a notification is always the same.
"""

from __future__ import annotations

import json
import logging
import random
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from dispatcher.failure_contract import Audience
from jobs.courier import Courier, Problem
from jobs.errors import JobError

if TYPE_CHECKING:
    from jobs.database.connection import Cursor
    from jobs.database.ledger import TaskRunRecord
    from jobs.labs import LabStore

logger = logging.getLogger(__name__)

#: Seconds for which nobody else delivers a notification that somebody has taken; longer than it takes.
LEASE_S = 60
#: Seconds before a failed one is tried again: doubled from the first to the last, shortened at random.
FIRST_BACKOFF_S, MAX_BACKOFF_S = 20.0, 3600.0
#: Seconds before one is looked at again that was not tried, because the settings of the webhook are wrong.
UNTRIED_S = 120.0
#: Seconds after which nobody is told any more; the row stays.
GIVE_UP_S = 86_400.0
#: Seconds that one delivery may take; a sweep does not begin one with less time left.
DELIVERY_S = 8.0
_MAX_ERROR = 500

_ADD = """
INSERT INTO notifications
 (event_type, lab_instance_id, cause, occasion, told, error_category, message, facts, task_id)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (coalesce(lab_instance_id, 0), cause, coalesce(occasion, '-infinity')) DO NOTHING RETURNING id
"""
_UNDELIVERED = "(published_at IS NULL OR webhook_at IS NULL)"
_COLUMNS = """
id, event_type, lab_instance_id,
(SELECT lab_id FROM lab_instances AS lab WHERE lab.id = lab_instance_id),
(SELECT student_id FROM lab_instances AS lab WHERE lab.id = lab_instance_id),
cause, occasion, error_category, told, message, facts, task_id, created_at,
published_at IS NOT NULL, webhook_at IS NOT NULL, failures,
CAST(extract(epoch FROM clock_timestamp() - created_at) AS float), last_error
"""
# Whoever moves next_attempt_at has it; a lease rather than a lock, because no transaction is to stay open
# while a webhook is waited for.
_TAKE = f"""
UPDATE notifications SET next_attempt_at = clock_timestamp() + interval '{LEASE_S} seconds'
WHERE id = (SELECT id FROM notifications
  WHERE {_UNDELIVERED} AND next_attempt_at <= clock_timestamp() AND id = coalesce(%s, id)
  ORDER BY next_attempt_at, id LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING {_COLUMNS}
"""  # noqa: S608
_WAITING = f"""
SELECT {_COLUMNS} FROM notifications WHERE {_UNDELIVERED} AND next_attempt_at < '9999-01-01Z'
ORDER BY id LIMIT 1000
"""  # noqa: S608
# What another has delivered meanwhile, after the lease of a slow one ran out, stays delivered.
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
        """What receivers know it by."""
        event = self.event_type.replace(".", "-").replace("_", "-")
        lab = () if self.lab_instance_id is None else (str(self.lab_instance_id),)
        occasion = f"{self.occasion.astimezone(timezone.utc):%Y%m%dT%H%M%S}" if self.occasion else None
        return "-".join((event, *lab, self.cause, *((occasion,) if occasion else ())))

    def body(self) -> bytes:
        """Return the JSON that is published, and posted."""
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
class News:
    """What somebody is to be told of; once for each lab, cause and occasion."""

    event_type: str
    cause: str
    told: Audience
    message: str
    task_id: str
    lab_instance_id: int | None = None
    #: None: it happens once.
    occasion: datetime | None = None
    category: str | None = None
    #: What else the event says: names and JSON values.
    facts: dict[str, Any] = field(default_factory=dict)


def add_news(cursor: Cursor, news: News) -> int | None:
    """Insert what somebody is to be told of, in the caller's transaction; None: nobody is, or already was."""
    if news.told is Audience.NOBODY:
        return None
    about = (news.event_type, news.lab_instance_id, news.cause, news.occasion, news.told.value)
    cursor.execute(_ADD, (*about, news.category, news.message, json.dumps(news.facts), news.task_id))
    row = cursor.fetchone()
    return row[0] if row else None


def add_notification(
    cursor: Cursor, record: TaskRunRecord, error: JobError, *, event_type: str = "lab.failed"
) -> int | None:
    """Insert whom to tell of a failure, as `add_news` does."""
    failure = error.failure
    news = News(
        event_type=event_type,
        cause=failure.cause,
        told=failure.told,
        message=error.sentence,
        task_id=record.task_id,
        lab_instance_id=record.lab_instance_id,
        category=failure.category.value,
    )
    return add_news(cursor, news)


def deliver_one(labs: LabStore, courier: Courier, row_id: int | None = None) -> bool | None:
    """Deliver the notification, or whichever is due; True: delivered, None: there was none to deliver.

    None is taken by a courier whose way to the broker is shut.

    Raises JobError when the database does not answer.
    """
    if courier.is_shut:
        return None
    row = labs.transaction(lambda cursor: _take(cursor, row_id))
    if row is None:
        return None
    found = Notification(*row)
    problems = _deliver(courier, found)
    said = "; ".join(problem.said for problem in problems)
    tried = any(problem.tried for problem in problems)
    values = {
        "id": found.row_id,
        "published": found.published,
        "called": found.called,
        "failed": int(tried),
        "error": said[:_MAX_ERROR] or None,
        "delay_s": _delay_s(found, tried=tried) if problems else 0,
    }
    labs.transaction(lambda cursor: cursor.execute(_SETTLE, values))
    _log(found, said, given_up=values["delay_s"] is None)
    return not problems


def sweep(labs: LabStore, courier: Courier, *, timeout_s: float) -> tuple[int, int]:
    """Deliver what is due for `timeout_s` seconds; return how many were delivered, and how many not.

    It ends early, and leaves the others as they are, when the broker fails again and again; a webhook that
    does is not called again.

    Raises JobError when the database does not answer.
    """
    deadline = time.monotonic() + timeout_s
    delivered = failed = 0
    while deadline - time.monotonic() > DELIVERY_S:
        done = deliver_one(labs, courier)
        if done is None:
            break
        delivered, failed = delivered + done, failed + (not done)
    return delivered, failed


def waiting(labs: LabStore) -> list[Notification]:
    """Return what is not delivered yet, the oldest first."""

    def read(cursor: Cursor) -> list[tuple[Any, ...]]:
        cursor.execute(_WAITING)
        return cursor.fetchall()

    return [Notification(*row) for row in labs.transaction(read)]


def _take(cursor: Cursor, row_id: int | None) -> tuple[Any, ...] | None:
    cursor.execute(_TAKE, (row_id,))
    return cursor.fetchone()


def _deliver(courier: Courier, found: Notification) -> list[Problem]:
    """Do what is not done yet, note what was, and return what went wrong."""
    problems = []
    if not found.published:
        problem = courier.publish(f"{found.event_type}.{found.told}", found.id, found.body())
        found.published = problem is None
        problems += [problem] if problem else []
    if not found.called:
        problem = courier.call(found.id, found.body())
        found.called = problem is None
        problems += [problem] if problem else []
    return problems


def _delay_s(found: Notification, *, tried: bool) -> float | None:
    """Return the seconds until the next attempt, or None if there is to be none."""
    if not tried:
        return UNTRIED_S if found.age_s + UNTRIED_S < GIVE_UP_S else None
    delay_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(found.failures, 20)) * random.uniform(0.5, 1.0)
    return delay_s if found.age_s + delay_s < GIVE_UP_S else None


def _log(found: Notification, problem: str, *, given_up: bool) -> None:
    extra = {"action": "notified", "notification": found.id, "cause": found.cause, "told": found.told}
    if not problem:
        logger.info("%s is told", found.told, extra=extra)
        return
    extra |= {"action": "notification_given_up" if given_up else "notification_waits"}
    level = logging.ERROR if given_up else logging.WARNING
    logger.log(level, "%s is not told: %s", found.told, problem, extra=extra)
