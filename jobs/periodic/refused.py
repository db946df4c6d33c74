"""What periodic tasks find each minute is told once an hour."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from jobs.context import TaskContext
from jobs.notifications import News, add_news


def hour_of(moment: datetime) -> datetime:
    """Return the occasion of news that there are once an hour."""
    return moment.replace(minute=0, second=0, microsecond=0)


def tell_refused(context: TaskContext, news: News, *, at: datetime) -> None:
    """Have this container tell why a task has refused its work, unless that was told in the same hour."""
    news = replace(news, occasion=hour_of(at))
    notification_id = context.labs.transaction(lambda cursor: add_news(cursor, news))
    if notification_id is not None:
        context.notify(notification_id)
