"""Run one periodic task, and write its result into the ledger."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from typing import Any

from dispatcher import tasks
from jobs.database.ledger import Ending
from jobs.handlers.context import TaskContext

logger = logging.getLogger(__name__)

#: Payload -> the module with its `run`, imported when it is needed: a create must not pay for it.
_MODULES: dict[type[tasks.PeriodicPayload], str] = {
    tasks.CleanupTimeoutLabs: "jobs.checks.cleanup",
    tasks.HealthCheckPods: "jobs.checks.health",
    tasks.SyncLabStatus: "jobs.checks.sync",
}


def run_periodic(context: TaskContext, payload: tasks.PeriodicPayload) -> None:
    """Run the task of a payload. Raises JobError."""
    run: Callable[[TaskContext, tasks.PeriodicPayload], dict[str, Any]]
    run = import_module(_MODULES[type(payload)]).run
    result = {"dry_run": True} if payload.dry_run else {}
    result |= run(context, payload)
    context.labs.record(context.record, Ending("succeeded", result=result))
    extra = {"action": "periodic_done", **result}
    logger.info("%s is done", payload.task_name.rpartition(".")[2], extra=extra)
