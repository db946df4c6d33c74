"""Relay the outbox right after a periodic task has put something into it, so that it is out at once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from jobs.database.due_rows import count_waiting
from jobs.handlers.context import TaskContext

if TYPE_CHECKING:
    from dispatcher.outbox.relay import RelayReport

logger = logging.getLogger(__name__)

#: Seconds; what is left then is published by the sweep, which runs every minute.
TIMEOUT_S = 30.0


def relay(context: TaskContext) -> RelayReport:
    """Publish what the outbox holds; what is not, because the broker is away, its sweep publishes."""
    # Most runs leave nothing in the outbox, and need no SQLAlchemy.
    from dispatcher.engine import open_engine
    from dispatcher.outbox.relay import relay_once

    url, publish_timeout_s = context.settings.database_url, context.settings.broker.publish_timeout_s
    with open_engine(url, application_name="autolabs-periodic-relay") as engine:
        return relay_once(engine, context.publisher, timeout_s=TIMEOUT_S, publish_timeout_s=publish_timeout_s)


def relay_deletes(context: TaskContext, task_ids: list[str]) -> int:
    """Relay the outbox, and return how many of these deletes still wait in it.

    Raises JobError when the database does not answer.
    """
    report = relay(context)
    # Another relay may have them in its hands, or have published them.
    left = {*task_ids} - {*report.published}
    waiting = count_waiting(context.labs, [*left]) if left else 0
    if waiting:
        why = report.database_error or next(iter(report.failed.values()), "another relay publishes it")
        extra = {"action": "deletes_wait", "deletes": waiting}
        logger.warning("%d deletes are left to the sweep of the outbox: %s", waiting, why, extra=extra)
    return waiting
