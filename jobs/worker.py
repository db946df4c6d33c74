"""The life of one task: decode, run, record, settle.

`run_task` returns True when the message may be acknowledged: its outcome is committed, or it was
published again with a delay, or it is in the dead-letter queue. Its result is with the backend then,
or a warning in the log.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from dispatcher import tasks
from dispatcher.errors import InvalidTask, MalformedMessage, PublishError
from dispatcher.message import TaskMessage, decode, is_short_text, next_attempt
from jobs import logs
from jobs.cleanup_labs import cleanup_expired
from jobs.consumer import Delivery
from jobs.context import Connections, TaskContext
from jobs.create_lab import cancel_create, create_lab, fail_create
from jobs.delete_lab import delete_lab
from jobs.errors import Category, JobError, PermanentError, TransientError
from jobs.labs import Ending, TaskRunRecord
from jobs.settlement import publish_dead_letter, publish_delayed, retry_delay_s

logger = logging.getLogger(__name__)

#: Seconds between tries to settle a failure while the database or the cluster is away.
COME_BACK_S = 80

#: Seconds. Celery counts a delay in whole ones and drops the rest, so its tasks come early by less than
#: this; waiting for them costs less than another container.
EARLY_S = 1.0


class _InvalidRequest(PermanentError):
    """The message is a task, but its arguments are not acceptable; kept in the dead-letter queue."""


class _Revoked(PermanentError):
    """The task is not begun: its time is over, or, as `_Cancelled`, somebody said so."""


class _Cancelled(_Revoked):
    """The task is in task_cancellations."""


def run_task(connections: Connections, delivery: Delivery, details: dict[str, Any]) -> bool:
    """Run the task of a delivery; `details` go to the ledger. False: give the message back."""
    headers = delivery.properties.headers or {}
    task_id = headers.get("id")
    logs.set_task(task_id=None if task_id is None else str(task_id), queue=connections.settings.queue)
    try:
        task = decode(delivery.body, delivery.properties)
    except MalformedMessage as exc:
        return _refuse(connections, delivery, details, str(exc))
    record = _make_record(connections, delivery, task, details)
    logs.set_task(
        task_id=task.id,
        task=task.name,
        lab_instance_id=record.lab_instance_id,
        attempt=record.attempt,
        queue=record.queue,
    )
    logger.info("task claimed", extra={"action": "claimed", "redelivered": delivery.redelivered, **details})
    context = TaskContext(connections, record)
    settled = _run_and_settle(connections, context, delivery, task)
    if settled and record.ending and connections.results and not task.ignore_result:
        connections.results.finished(task.id, record.ending, parent_id=task.parent_id, group_id=task.group)
    return settled


def _run_and_settle(
    connections: Connections, context: TaskContext, delivery: Delivery, task: TaskMessage
) -> bool:
    try:
        if _park_until_eta(context, task):
            return True
        _run(connections, context, task)
    except JobError as exc:
        return _settle_failure(connections, context, delivery, task, exc)
    except PublishError as exc:
        logger.error("broker does not take what the task publishes: %s", exc, extra={"action": "given_back"})
        return False
    except Exception as exc:  # a bug must not be delivered again and again
        logger.exception("task failed with an internal error", extra={"action": "bug"})
        error = _InvalidRequest(
            Category.PERMANENT_INVALID_REQUEST,
            "The platform made an error of its own; the administrator must look at it.",
            evidence=f"{type(exc).__name__}: {exc}",
        )
        return _settle_failure(connections, context, delivery, task, error)
    logger.info("task done", extra={"action": "done"})
    return True


def _make_record(
    connections: Connections, delivery: Delivery, task: TaskMessage, details: dict[str, Any]
) -> TaskRunRecord:
    settings = connections.settings
    lab_instance_id = task.kwargs.get("lab_instance_id", task.args[0] if task.args else None)
    valid = type(lab_instance_id) is int and 0 < lab_instance_id < 2**63
    return TaskRunRecord(
        task_id=task.id,
        task_name=task.name,
        attempt=task.retries + 1,
        redelivered=delivery.redelivered,
        queue=settings.queue,
        job_name=settings.job_name,
        pod_name=settings.pod_name,
        published_at=task.published_at,
        lab_instance_id=lab_instance_id if valid else None,
        details=dict(details),
    )


def _run(connections: Connections, context: TaskContext, task: TaskMessage) -> None:
    payload = _parse(task)
    if not context.labs.begin(context.record):
        raise _Cancelled(
            Category.PERMANENT_INVALID_REQUEST,
            "The task was cancelled before it began.",
            evidence="cancelled",
        )
    if task.expires and task.expires <= datetime.now(timezone.utc):
        raise _Revoked(
            Category.TEMPORARY_RESOURCE_ERROR,
            "The request ran out before it could be performed. Please send it again.",
            evidence=f"expires {task.expires.isoformat()}",
        )
    if connections.results and not task.ignore_result:
        connections.results.started(task.id, parent_id=task.parent_id, group_id=task.group)
    _HANDLERS[type(payload)](context, payload)


def _parse(task: TaskMessage) -> tasks.Payload:
    if task.unsupported:
        raise _InvalidRequest(
            Category.PERMANENT_INVALID_REQUEST,
            f"The request for this lab asks for {', '.join(task.unsupported)}, which is not supported."
            " Whoever sent it must publish the follow-up task itself.",
        )
    try:
        return tasks.parse_payload(task.name, task.args, task.kwargs)
    except InvalidTask as exc:
        raise _InvalidRequest(
            Category.PERMANENT_INVALID_REQUEST,
            f"The request for this lab is not valid: {exc}. Whoever sent it must correct it.",
        ) from exc


def _cleanup(context: TaskContext, _payload: tasks.CleanupTimeoutLabs) -> None:
    count = cleanup_expired(context.labs, context.publisher)
    context.record.details["deletes_published"] = count
    context.labs.record(context.record, Ending("succeeded", result={"deletes_published": count}))


_HANDLERS: dict[type, Callable[[TaskContext, Any], None]] = {
    tasks.CreateLabPod: create_lab,
    tasks.DeleteLabPod: delete_lab,
    tasks.CleanupTimeoutLabs: _cleanup,
}


def _park_until_eta(context: TaskContext, task: TaskMessage) -> bool:
    """Send a task that is not due yet to the delay ladder, but wait out the last second here."""
    now = datetime.now(timezone.utc)
    wait_s = (task.eta - now).total_seconds() if task.eta else 0.0
    ran_out = task.expires is not None and task.expires <= now
    if wait_s <= 0 or ran_out or task.name not in tasks.ROUTING_KEYS:
        return False
    if wait_s <= EARLY_S:
        time.sleep(wait_s)
        return False
    publish_delayed(context.publisher, task, wait_s)
    logger.info("task is not due yet", extra={"action": "parked", "eta": task.eta})
    return True


def _settle_failure(
    connections: Connections,
    context: TaskContext,
    delivery: Delivery,
    task: TaskMessage,
    error: JobError,
) -> bool:
    retry = context.settings.retry
    try:
        # A task without a routing key cannot come back.
        may_retry = task.retries < retry.max_retries and task.name in tasks.ROUTING_KEYS
        if isinstance(error, TransientError) and may_retry:
            return _retry(context, task, error)
        # A create has its lab to say why it failed; for everything else the DLQ keeps the evidence.
        keep = not isinstance(error, _Revoked) and (
            task.name != tasks.CREATE_LAB_POD or isinstance(error, (TransientError, _InvalidRequest))
        )
        try:
            _record_failure(context, task, error, keep=keep)
        except JobError as unsettled:
            if isinstance(unsettled, TransientError) and task.name in tasks.ROUTING_KEYS:
                return _come_back(context, task, unsettled)
            extra = {"action": "ledger_missed"}
            logger.error("failure is not recorded, or its objects are left: %s", unsettled, extra=extra)
            context.record.ending = Ending.of_error("dead_lettered", error)
            keep = True
        _log_end(error)
    except PublishError as exc:
        logger.error("retry was not confirmed: %s", exc, extra={"action": "given_back"})
        return False
    if keep:
        return _dead_letter(connections, delivery, str(error), error.category.value)
    return True


def _log_end(error: JobError) -> None:
    if isinstance(error, _Revoked):
        extra = {"action": "revoked", "evidence": error.evidence}
        logger.info("task is not begun: %s", error.sentence, extra=extra)
        return
    extra = {"action": "failed", "error_category": error.category.value, "evidence": error.evidence}
    logger.error("task failed: %s", error.sentence, extra=extra)


def _record_failure(context: TaskContext, task: TaskMessage, error: JobError, *, keep: bool) -> None:
    create = task.name == tasks.CREATE_LAB_POD
    lab_instance_id = context.record.lab_instance_id
    if isinstance(error, _Cancelled):
        if create and lab_instance_id is not None:
            cancel_create(context, lab_instance_id)
        else:
            # Nobody has to act, so there is no category.
            context.labs.record(context.record, Ending("revoked", error_message=error.sentence))
        return
    outcome = "revoked" if isinstance(error, _Revoked) else "dead_lettered" if keep else "failed"
    if create:
        fail_create(context, error, outcome=outcome)
    else:
        context.labs.record(context.record, Ending.of_error(outcome, error))


def _come_back(context: TaskContext, task: TaskMessage, why: TransientError) -> bool:
    """Publish a failed task again, as often as it takes: its lab must learn of the failure."""
    publish_delayed(context.publisher, replace(task, eta=None), random.uniform(0.5, 1.0) * COME_BACK_S)
    # What is not recorded yet; after a failure that is, only the lab's objects are left to do.
    context.record.ending = context.record.ending or Ending.of_error("retried", why)
    extra = {"action": "comes_back", "evidence": why.evidence}
    logger.error("failure cannot be settled now, the task comes back: %s", why.sentence, extra=extra)
    return True


def _retry(context: TaskContext, task: TaskMessage, error: TransientError) -> bool:
    delay_s = retry_delay_s(context.settings.retry, task.retries)
    publish_delayed(context.publisher, next_attempt(task), delay_s)
    extra = {
        "action": "retried",
        "delay_s": round(delay_s, 1),
        "error_category": error.category.value,
        "evidence": error.evidence,
    }
    logger.warning("task is tried again later: %s", error.sentence, extra=extra)
    context.record.details["retry_delay_s"] = round(delay_s, 1)
    ending = Ending.of_error("retried", error)
    try:
        context.labs.record(context.record, ending)
    except JobError as exc:
        context.record.ending = ending
        logger.warning("retry is not in the ledger: %s", exc, extra={"action": "ledger_missed"})
    return True


def _refuse(connections: Connections, delivery: Delivery, details: dict[str, Any], reason: str) -> bool:
    """Dead-letter what is no task message; its sender learns of it if there is a task id in it."""
    error = PermanentError(Category.PERMANENT_INVALID_REQUEST, reason)
    if not _dead_letter(connections, delivery, error.sentence, error.category.value):
        return False
    headers = delivery.properties.headers or {}
    task_id, name = headers.get("id"), headers.get("task")
    if not (task_id and is_short_text(task_id)):
        return True
    unread = TaskMessage(name=name if name and is_short_text(name) else "", id=task_id)
    record = _make_record(connections, delivery, unread, details)
    ending = Ending.of_error("dead_lettered", error)
    try:
        connections.labs.record(record, ending)
    except JobError as exc:
        extra = {"action": "ledger_missed"}
        logger.warning("refusal is in the dead-letter queue, but not in the ledger: %s", exc, extra=extra)
    if connections.results and headers.get("ignore_result") is not True:
        connections.results.finished(task_id, ending)
    return True


def _dead_letter(connections: Connections, delivery: Delivery, reason: str, category: str) -> bool:
    try:
        publish_dead_letter(
            connections.publisher, connections.settings, delivery, reason=reason, category=category
        )
    except PublishError as exc:
        logger.error("dead letter was not confirmed: %s", exc, extra={"action": "given_back"})
        return False
    extra = {"action": "dead_lettered", "error_category": category}
    logger.error("message is in the dead-letter queue: %s", reason, extra=extra)
    return True
