"""What periodic tasks find each minute is told once an hour."""

from __future__ import annotations

from datetime import datetime

from jobs.context import TaskContext
from jobs.notifications import News, add_news
from jobs.verify.safety_limits import Refusal


def hour_of(moment: datetime) -> datetime:
    """Return the occasion of news that there are once an hour."""
    return moment.replace(minute=0, second=0, microsecond=0)


def tell_refused(
    context: TaskContext, refusal: Refusal, *, event_type: str, message: str, at: datetime, cause: str = ""
) -> None:
    """Have this container tell why a task has changed nothing, unless that was told in the same hour.

    `cause`: of an event that has no category, instead of that of the failure.
    """
    failure = refusal.failure
    news = News(
        event_type=event_type,
        cause=cause or failure.cause,
        told=failure.told,
        message=message,
        task_id=context.record.task_id,
        category=None if cause else failure.category.value,
        occasion=hour_of(at),
        facts=refusal.facts,
    )
    notification_id = context.labs.transaction(lambda cursor: add_news(cursor, news))
    if notification_id is not None:
        context.notify(notification_id)
