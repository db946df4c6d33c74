"""Relay the outbox right after a cleanup, so that its deletes are out at once."""

from __future__ import annotations

import logging

from jobs.context import TaskContext
from jobs.database import Cursor

logger = logging.getLogger(__name__)

#: Seconds; what is left then is published by the sweep, which runs every minute.
TIMEOUT_S = 30.0


def relay(context: TaskContext, task_ids: list[str]) -> int:
    """Publish what the outbox holds and return how many of the tasks still wait in it.

    That the broker is away is no failure: the tasks are committed, and the outbox's sweep publishes them.
    Raises JobError when the database does not answer.
    """
    # A cleanup that finds nothing, as most do, needs no SQLAlchemy.
    from dispatcher import outbox_relay
    from dispatcher.engine import make_engine

    engine = make_engine(context.settings.database_url, application_name="autolabs-cleanup-relay")
    try:
        report = outbox_relay.relay_once(
            engine,
            context.publisher,
            timeout_s=TIMEOUT_S,
            publish_timeout_s=context.settings.broker.publish_timeout_s,
        )
    finally:
        engine.dispose()
    # Another relay may have them in its hands, or have published them.
    waiting = _count(context, [*{*task_ids} - {*report.published}])
    if waiting:
        why = report.database_error or next(iter(report.failed.values()), "another relay is at it")
        extra = {"action": "deletes_wait", "deletes": waiting}
        logger.warning("%d deletes are left to the sweep of the outbox: %s", waiting, why, extra=extra)
    return waiting


def _count(context: TaskContext, task_ids: list[str]) -> int:
    def count(cursor: Cursor) -> int:
        cursor.execute("SELECT count(*) FROM task_outbox WHERE task_id = ANY(%s)", (task_ids,))
        return int(cursor.fetchall()[0][0])

    return context.labs.at_once(count) if task_ids else 0
