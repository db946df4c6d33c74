"""A periodic task in a container of its own: the same code as for a message, and a row in the ledger."""

from __future__ import annotations

import os

from dispatcher import tasks
from dispatcher.message.envelope import new_task_id
from dispatcher.settings import read_settings
from jobs import logs
from jobs.checks.run import run_periodic
from jobs.config.environment import JobSettings
from jobs.database.ledger import Ending, TaskRunRecord
from jobs.errors import JobError
from jobs.failures import Failure
from jobs.handlers.context import Connections, TaskContext


def run_task(payload: tasks.PeriodicPayload) -> None:
    """Run the task once. Raises JobError and PublishError, after they are in the ledger."""
    connections = Connections(read_settings(os.environ, JobSettings.from_environment))
    record = TaskRunRecord(
        task_id=new_task_id(),
        task_name=payload.task_name,
        job_name=connections.settings.job_name,
        pod_name=connections.settings.pod_name,
    )
    logs.set_task(task_id=record.task_id, task=payload.task_name)
    context = TaskContext(connections, record)
    context.labs.begin(record)
    try:
        run_periodic(context, payload)
    except Exception as exc:
        # The next run is the retry. Of a bug the row is to tell too: as `started` it would seem to go on.
        evidence = f"{type(exc).__name__}: {exc}"
        error = exc if isinstance(exc, JobError) else Failure.INTERNAL_ERROR.error(evidence=evidence)
        context.labs.record(record, Ending.of_error("failed", error))
        raise
    finally:
        context.publisher.close()
        context.labs.close()
