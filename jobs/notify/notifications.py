"""Deliver what somebody is to be told of: a row that was committed with what happened to a lab.

The container that made the row delivers it after its message is acknowledged; what it could not do, or was
killed over, the sweep of the outbox does. At least once, hence the `id` of a notification is always the same.
"""

from __future__ import annotations

import logging
import random
import time

from jobs.database.connection import Database
from jobs.database.notifications import Notification, settle, take
from jobs.notify.webhook import Courier, Problem

logger = logging.getLogger(__name__)

#: Seconds before a failed one is tried again: doubled from the first to the last, shortened at random.
FIRST_BACKOFF_S, MAX_BACKOFF_S = 20.0, 3600.0
#: Seconds before one is looked at again that was not tried, because the settings of the webhook are wrong.
UNTRIED_S = 120.0
#: Seconds after which nobody is told any more; the row stays.
GIVE_UP_S = 86_400.0
#: Seconds that one delivery may take; a sweep does not begin one with less time left.
DELIVERY_S = 8.0


def deliver_one(database: Database, courier: Courier, row_id: int | None = None) -> bool | None:
    """Deliver the notification, or whichever is due; True: delivered, None: there was none to deliver.

    None is taken by a courier whose way to the broker is shut.

    Raises JobError when the database does not answer.
    """
    if courier.is_shut:
        return None
    found = take(database, row_id)
    if found is None:
        return None
    problems = _deliver(courier, found)
    said = "; ".join(problem.said for problem in problems)
    tried = any(problem.tried for problem in problems)
    delay_s = _delay_s(found, tried=tried) if problems else 0
    settle(database, found, failed=tried, error=said, delay_s=delay_s)
    _log(found, said, given_up=delay_s is None)
    return not problems


def sweep(database: Database, courier: Courier, *, timeout_s: float) -> tuple[int, int]:
    """Deliver what is due for `timeout_s` seconds; return how many were delivered, and how many not.

    It ends early, and leaves the others as they are, when the broker fails again and again; a webhook that
    does is not called again.

    Raises JobError when the database does not answer.
    """
    deadline = time.monotonic() + timeout_s
    delivered = failed = 0
    while deadline - time.monotonic() > DELIVERY_S:
        done = deliver_one(database, courier)
        if done is None:
            break
        delivered, failed = delivered + done, failed + (not done)
    return delivered, failed


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
