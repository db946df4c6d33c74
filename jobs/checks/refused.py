"""What periodic tasks find each minute is told once an hour."""

from __future__ import annotations

from datetime import datetime

from jobs.database.notifications import NewNotification, add_notification
from jobs.failures import Failure
from jobs.handlers.context import TaskContext
from jobs.verify.safety_limits import Refusal


def hour_of(moment: datetime) -> datetime:
    """Return the occasion of news that there are once an hour."""
    return moment.replace(minute=0, second=0, microsecond=0)


def tell_refused(
    context: TaskContext,
    refusal: Refusal,
    event: str,
    message: str,
    *,
    at: datetime,
    failure: Failure | None = None,
) -> None:
    """Have this container tell why a task has changed nothing, unless that was told in the same hour.

    `failure`: of an event that names it; another says only that the task refused.
    """
    news = NewNotification(
        event_type=event,
        cause=failure.cause if failure else event.removeprefix("platform."),
        audience=refusal.failure.audience,
        message=message,
        task_id=context.record.task_id,
        category=failure.category.value if failure else None,
        occasion=hour_of(at),
        facts=refusal.facts,
    )
    notification_id = context.labs.transaction(lambda cursor: add_notification(cursor, news))
    if notification_id is not None:
        context.notify(notification_id)
