"""Run one periodic task, write its result into the ledger, and do what all of them have in common.

A container calls `run_periodic` for a message, and `python -m cronjobs` for a CronJob.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dispatcher import tasks
from jobs.database.ledger import Ending
from jobs.database.notifications import NewNotification, add_notification
from jobs.failures import Failure
from jobs.handlers.context import TaskContext

if TYPE_CHECKING:
    from dispatcher.outbox.relay import RelayReport
    from jobs.verify.safety_limits import Refusal

logger = logging.getLogger(__name__)

#: Payload -> the module with its `run`, imported when it is needed: a create must not pay for it.
_MODULES: dict[type[tasks.PeriodicPayload], str] = {
    tasks.CleanupTimeoutLabs: "jobs.checks.cleanup",
    tasks.HealthCheckPods: "jobs.checks.health",
    tasks.SyncLabStatus: "jobs.checks.sync",
}
#: Seconds to relay the outbox; what is left then is published by its sweep, which runs every minute.
RELAY_S = 30.0


def run_periodic(context: TaskContext, payload: tasks.PeriodicPayload) -> None:
    """Run the task of a payload. Raises JobError."""
    run: Callable[[TaskContext, tasks.PeriodicPayload], dict[str, Any]]
    run = import_module(_MODULES[type(payload)]).run
    result = {"dry_run": True} if payload.dry_run else {}
    result |= run(context, payload)
    context.labs.record(context.record, Ending("succeeded", result=result))
    extra = {"action": "periodic_done", **result}
    logger.info("%s is done", payload.task_name.rpartition(".")[2], extra=extra)


def hour_of(moment: datetime) -> datetime:
    """Return the occasion of news that a task finds each minute and tells once an hour."""
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
    context.notify(context.labs.transaction(lambda cursor: add_notification(cursor, news)))


def relay(context: TaskContext) -> RelayReport:
    """Publish at once what the outbox holds; what the broker does not take, the sweep publishes."""
    # Most runs leave nothing in the outbox, and need no SQLAlchemy.
    from dispatcher.engine import open_engine
    from dispatcher.outbox.relay import relay_once

    url, publish_timeout_s = context.settings.database_url, context.settings.broker.publish_timeout_s
    with open_engine(url, application_name="autolabs-periodic-relay") as engine:
        return relay_once(engine, context.publisher, timeout_s=RELAY_S, publish_timeout_s=publish_timeout_s)
