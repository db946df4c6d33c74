"""Decode one task, run it, record it, and settle it.

`python -m jobs` calls `run_task`, which says what is to become of the message. The result of the task is with
the backend then, or a warning in the log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from dispatcher import tasks
from dispatcher.broker.topology import unsettled_deliveries
from dispatcher.errors import InvalidTask, MalformedMessage, PublishError
from dispatcher.message.envelope import TaskMessage, decode, is_short_text
from jobs import logs
from jobs.container.consumer import Delivery, Settlement
from jobs.container.settle import publish_delayed, settle_failure, settle_redelivered, settle_unreadable
from jobs.database.ledger import TaskRunRecord
from jobs.errors import JobError, TransientError
from jobs.failures import Failure
from jobs.handlers.context import Connections, TaskContext
from jobs.handlers.create import create_lab
from jobs.handlers.delete import FailedDelete, delete_lab
from jobs.handlers.failed_task import FailedTask
from jobs.steps import reached

logger = logging.getLogger(__name__)

#: Seconds by which a task may come early: Celery counts a delay in whole ones and drops the rest. To wait for
#: it costs less than another container.
EARLY_S = 1.0


def run_task(connections: Connections, delivery: Delivery, details: dict[str, Any]) -> Settlement:
    """Run the task of a delivery; `details` go to the ledger."""
    task_id = (delivery.properties.headers or {}).get("id")
    logs.set_task(task_id=None if task_id is None else str(task_id), queue=connections.settings.queue)
    try:
        return _decode_and_run(connections, delivery, details)
    except PublishError as exc:
        logger.error("broker does not take what has to be published: %s", exc, extra={"action": "given_back"})
        return Settlement.NACK


def is_task(delivery: Delivery) -> bool:
    """Tell whether a message may be a task, from itself alone; False: `run_task` puts it aside."""
    try:
        _parse(decode(delivery.body, delivery.properties))
    except (MalformedMessage, JobError):
        return False
    except Exception as exc:  # whatever it is, `run_task` records it, and a pile must not be lost over it
        logger.warning("whether a message is a task is not known: %r", exc, extra={"action": "odd_message"})
    return True


def _decode_and_run(connections: Connections, delivery: Delivery, details: dict[str, Any]) -> Settlement:
    try:
        task = decode(delivery.body, delivery.properties)
    except MalformedMessage as exc:
        task = _unreadable(delivery)
        record = _make_record(connections, delivery, task, details)
        error = Failure.MESSAGE_UNREADABLE.error(problem=exc)
        settlement = settle_unreadable(connections, delivery, record, task, error)
    else:
        record = _make_record(connections, delivery, task, details)
        settlement = _run_and_settle(connections, delivery, task, record)
    if record.ending and connections.results and not task.ignore_result:
        connections.results.finished(task.id, record.ending, parent_id=task.parent_id, group_id=task.group)
    return settlement


def _unreadable(delivery: Delivery) -> TaskMessage:
    """Return what can be read of a message that is no task, so that its sender learns of it."""
    headers = delivery.properties.headers or {}
    task_id, name = headers.get("id"), headers.get("task")
    return TaskMessage(
        name=str(name) if is_short_text(name) else "",
        id=str(task_id) if is_short_text(task_id) else "",
        ignore_result=headers.get("ignore_result") is True,
    )


def _run_and_settle(
    connections: Connections, delivery: Delivery, task: TaskMessage, record: TaskRunRecord
) -> Settlement:
    lab, attempt = record.lab_instance_id, record.attempt
    logs.set_task(task_id=task.id, task=task.name, lab_instance_id=lab, attempt=attempt, queue=record.queue)
    extra = {"action": "claimed", "redelivered": delivery.redelivered, **record.details}
    logger.info("task claimed", extra=extra)
    reached("claimed")
    context = TaskContext(connections, record)
    error: JobError
    try:
        # What can never be performed does not wait for its time.
        payload = _accept(record, task)
        if _park_until_eta(context, task):
            return Settlement.RETRY
        # A copy that `autolabs verify` made of a message that came back says so in its headers alone.
        if delivery.redelivered or unsettled_deliveries(delivery.properties.headers):
            settle_redelivered(_failed_task(context, delivery, task), delivery)
        _begin(connections, context, delivery, task)
        _HANDLERS[type(payload)](context, payload)
        logger.info("task done", extra={"action": "done"})
        return Settlement.ACK
    except JobError as exc:
        error = exc
    except PublishError:
        raise
    except Exception as exc:  # a bug must not be delivered again and again
        logger.exception("task failed with an internal error", extra={"action": "bug"})
        error = Failure.INTERNAL_ERROR.error(evidence=f"{type(exc).__name__}: {exc}")
    return settle_failure(_failed_task(context, delivery, task), delivery, error)


def _failed_task(context: TaskContext, delivery: Delivery, task: TaskMessage) -> FailedTask:
    """Return a failed task as its handler sees it; what that imports, no task needs that goes well."""
    from jobs.handlers.give_up import FailedCreate
    from jobs.handlers.resize import FailedResize

    of_a_lab: dict[str, type[FailedTask]] = {
        tasks.CREATE_LAB_POD: FailedCreate,
        tasks.DELETE_LAB_POD: FailedDelete,
        tasks.SCALE_LAB_RESOURCES: FailedResize,
    }
    kind = FailedTask if context.record.lab_instance_id is None else of_a_lab.get(task.name, FailedTask)
    # The broker copies what it gives up; a message that only counts as worn out has no copy.
    dead_lettered = "x-last-death-reason" in (delivery.properties.headers or {})
    return kind(context, task, dead_lettered=dead_lettered)


def _make_record(
    connections: Connections, delivery: Delivery, task: TaskMessage, details: dict[str, Any]
) -> TaskRunRecord:
    settings = connections.settings
    return TaskRunRecord(
        task_id=task.id,
        task_name=task.name,
        attempt=task.retries + 1,
        redelivered=delivery.redelivered,
        queue=settings.queue,
        job_name=settings.job_name,
        pod_name=settings.pod_name,
        published_at=task.published_at,
        lab_instance_id=tasks.lab_instance_id_of(task.args, task.kwargs),
        details=dict(details),
    )


def _begin(connections: Connections, context: TaskContext, delivery: Delivery, task: TaskMessage) -> None:
    """Write the run into the ledger. Raises JobError, also when the task is not to be performed."""
    if not context.labs.begin(context.record):
        raise Failure.CANCELLED.error(evidence="cancelled before it began")
    reached("begun")
    given_up = delivery.given_up(context.settings.queue)
    if given_up == "delivery_limit":
        raise Failure.CONTAINER_CRASHED.error(evidence="delivery limit of the queue")
    if given_up == "expired":
        raise Failure.EXPIRED.error(evidence="expired in its queue")
    # A stop that has begun is done: its lab goes down already.
    begun = task.name == tasks.DELETE_LAB_POD and (delivery.redelivered or task.retries > 0)
    if task.expires and not begun and task.expires <= _now(context):
        raise Failure.EXPIRED.error(evidence=f"expires {task.expires.isoformat()}")
    if connections.results and not task.ignore_result:
        connections.results.started(task.id, parent_id=task.parent_id, group_id=task.group)


def _accept(record: TaskRunRecord, task: TaskMessage) -> tasks.Payload:
    payload, passed_over = _parse(task)
    if passed_over:
        record.details["passed_over"] = passed_over
        said = "; ".join(f"{field}: {problem}" for field, problem in passed_over.items())
        logger.warning("task is performed without %s", said, extra={"action": "passed_over"})
    return payload


def _parse(task: TaskMessage) -> tuple[tasks.Payload, dict[str, str]]:
    if task.unsupported:
        raise Failure.FOLLOW_UP_UNSUPPORTED.error(unsupported=", ".join(task.unsupported))
    try:
        return tasks.accept_payload(task.name, task.args, task.kwargs)
    except InvalidTask as exc:
        raise Failure.REQUEST_INVALID.error(problem=exc) from exc


def _scale_lab(context: TaskContext, payload: tasks.ScaleLabResources) -> None:
    from jobs.handlers.resize import scale_lab  # which no create and no delete needs

    scale_lab(context, payload)


def _run_periodic(context: TaskContext, payload: tasks.PeriodicPayload) -> None:
    from jobs.checks.run import run_periodic  # as above

    run_periodic(context, payload)


_HANDLERS: dict[type, Callable[[TaskContext, Any], None]] = {
    tasks.CreateLabPod: create_lab,
    tasks.DeleteLabPod: delete_lab,
    tasks.ScaleLabResources: _scale_lab,
    tasks.CleanupTimeoutLabs: _run_periodic,
    tasks.HealthCheckPods: _run_periodic,
    tasks.SyncLabStatus: _run_periodic,
}


def _park_until_eta(context: TaskContext, task: TaskMessage) -> bool:
    """Send a task that is not due yet to the delay ladder, but wait out the last second here."""
    if task.eta is None:
        return False
    now = _now(context)
    wait_s = (task.eta - now).total_seconds()
    ran_out = task.expires is not None and task.expires <= now
    if wait_s <= 0 or ran_out or task.name not in tasks.ROUTING_KEYS:
        return False
    if wait_s <= EARLY_S:
        time.sleep(wait_s)
        return False
    publish_delayed(context.publisher, task, wait_s)
    logger.info("task is not due yet", extra={"action": "parked", "eta": task.eta})
    return True


def _now(context: TaskContext) -> datetime:
    """Return the database's time, by which all go; the container's own if the database does not answer."""
    from jobs.database.snapshot_rows import database_now  # which a task without a time does not need

    try:
        return database_now(context.labs)
    except TransientError as exc:
        logger.warning("times go by this container's clock: %s", exc, extra={"action": "own_clock"})
        return datetime.now(timezone.utc)
