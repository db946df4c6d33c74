"""Settle the message of a task that failed: retry it, or record the failure and dead-letter the message.

jobs.container.run_task calls it. What is published is confirmed by the broker before the message may be
acknowledged: a crash in between gives a duplicate, never a loss. A PublishError says that nothing is certain,
and the message has to be given back.
"""

from __future__ import annotations

import logging
import random
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from dispatcher import tasks
from dispatcher.broker import delay_ladder, topology
from dispatcher.broker.publisher import Publisher
from dispatcher.failure_contract import COME_BACK_S, DeadLetterHeader
from dispatcher.message import envelope
from dispatcher.message.envelope import TaskMessage, next_attempt
from jobs.config.environment import RetrySettings
from jobs.container.consumer import Delivery, Settlement
from jobs.database.ledger import Ending, TaskRunRecord
from jobs.errors import JobError, ObjectsLeft, TransientError
from jobs.failures import REVOKED, given_up
from jobs.handlers.context import Connections
from jobs.handlers.failed_task import FailedTask, FailureOutcome

logger = logging.getLogger(__name__)

#: Longest delay of a retry in seconds: room for a lab is looked for this often at least.
MAX_RETRY_DELAY_S = 640.0
#: Longest text in a header of a dead letter, in characters.
_SHORT = 1000


def settle_redelivered(failed: FailedTask, delivery: Delivery) -> None:
    """Publish the dead letter that an earlier container recorded, as it may have died before it did.

    A second one does no harm. Raises JobError, PublishError.
    """
    if error := failed.recorded_dead_letter():
        _dead_letter(failed, delivery, error)


def settle_failure(failed: FailedTask, delivery: Delivery, error: JobError) -> Settlement:
    """Retry a task that failed, or record its failure and what follows from it. Raises PublishError."""
    task = failed.task
    if isinstance(error, ObjectsLeft):
        return _come_back(failed, error)
    if isinstance(error, TransientError):
        if _has_queue(task) and task.retries < failed.context.settings.retry.max_retries:
            failed.look(error, logging.WARNING)
            return _retry(failed, error)
        error = given_up(error, task.retries + 1, failed.what_next)
    return _settle_for_good(failed, delivery, failed.on_failure(error))


def settle_unreadable(
    connections: Connections, delivery: Delivery, record: TaskRunRecord, task: TaskMessage, error: JobError
) -> Settlement:
    """Dead-letter what is no task message; the ledger has it if there is a task id. Raises PublishError."""
    publish_dead_letter(connections.publisher, delivery, record, task, error)
    if record.task_id:
        record.ending = Ending.of_error("dead_lettered", error)
        try:
            connections.labs.record(record, record.ending)
        except JobError as exc:
            extra = {"action": "ledger_missed"}
            logger.warning("refusal is in the dead-letter queue, but not in the ledger: %s", exc, extra=extra)
    return Settlement.DEAD_LETTER


def _has_queue(task: TaskMessage) -> bool:
    # A name that nobody knows has no routing key, so that its task cannot come back.
    return task.name in tasks.ROUTING_KEYS


def _settle_for_good(failed: FailedTask, delivery: Delivery, outcome: FailureOutcome) -> Settlement:
    record, error = failed.context.record, outcome.error
    try:
        if stay_s := failed.record(outcome):
            # The task comes back for the objects of its lab, which is FAILED by then.
            publish_delayed(failed.context.publisher, replace(failed.task, eta=None, expires=None), stay_s)
            extra = {"action": "objects_kept", "seconds": stay_s}
            logger.warning("the lab's objects stay for %d s", stay_s, extra=extra)
        else:
            failed.clean_up(outcome)
    except JobError as unsettled:
        if isinstance(unsettled, TransientError) and _has_queue(failed.task):
            # Once the failure is recorded the next run takes down objects alone, and dead-letters nothing.
            if outcome.dead_letter and record.ending is not None:
                _dead_letter(failed, delivery, error)
            return _come_back(failed, unsettled)
        missed = unsettled.log_fields("ledger_missed")
        logger.error("failure is not recorded, or its objects are left: %s", unsettled, extra=missed)
        record.ending = Ending.of_error("dead_lettered", error)
        outcome = replace(outcome, dead_letter=True)
    if error.failure in REVOKED:
        logger.info("task is not performed: %s", error.sentence, extra=error.log_fields("revoked"))
    else:
        logger.error("task failed: %s", error.sentence, extra=error.log_fields("failed"))
    if not outcome.dead_letter:
        return Settlement.ACK
    _dead_letter(failed, delivery, error)
    return Settlement.DEAD_LETTER


def _come_back(failed: FailedTask, why: TransientError) -> Settlement:
    """Publish a failed task again, as often as it takes: its lab must learn of the failure."""
    delay_s = random.uniform(0.5, 1.0) * COME_BACK_S
    publish_delayed(failed.context.publisher, replace(failed.task, eta=None), delay_s)
    extra = why.log_fields("comes_back")
    logger.error("failure cannot be settled now, the task comes back: %s", why.sentence, extra=extra)
    if failed.context.record.ending is None:
        _record_retry(failed, why)
    return Settlement.RETRY


def _retry(failed: FailedTask, error: TransientError) -> Settlement:
    context, task = failed.context, failed.task
    delay_s = retry_delay_s(context.settings.retry, task.retries)
    publish_delayed(context.publisher, next_attempt(task, error=str(error)), delay_s)
    extra = {**error.log_fields("retried"), "delay_s": round(delay_s, 1)}
    logger.warning("task is tried again later: %s", error.sentence, extra=extra)
    context.record.details["retry_delay_s"] = round(delay_s, 1)
    _record_retry(failed, error)
    return Settlement.RETRY


def _record_retry(failed: FailedTask, why: TransientError) -> None:
    context, ending = failed.context, Ending.of_error("retried", why)
    try:
        context.labs.record(context.record, ending)
    except JobError as exc:  # most often it is the database that is away
        context.record.ending = ending
        logger.warning("retry is not in the ledger: %s", exc, extra={"action": "ledger_missed"})


def retry_delay_s(settings: RetrySettings, retries: int) -> float:
    """Return the seconds to wait before the retry that follows `retries` earlier ones."""
    delay_s = settings.delay_s * settings.backoff**retries
    if settings.jitter:
        delay_s *= random.uniform(0.5, 1.0)
    return min(delay_s, MAX_RETRY_DELAY_S)


def publish_delayed(publisher: Publisher, task: TaskMessage, delay_s: float) -> None:
    """Publish a task so that it reaches its queue after the delay, in seconds, rounded up to whole ones."""
    body, properties = envelope.encode(task)
    properties.pop("expiration", None)  # it would end the wait on the first level that is longer
    routing_key = delay_ladder.delayed_routing_key(delay_s, tasks.ROUTING_KEYS[task.name])
    publisher.publish(delay_ladder.ENTRY_EXCHANGE, routing_key, body, properties)


def _dead_letter(failed: FailedTask, delivery: Delivery, error: JobError) -> None:
    publish_dead_letter(failed.context.publisher, delivery, failed.context.record, failed.task, error)


def publish_dead_letter(
    publisher: Publisher, delivery: Delivery, record: TaskRunRecord, task: TaskMessage, error: JobError
) -> None:
    """Put the message, unchanged but for headers that tell its story, into the dead-letter queue."""
    original, routing_key = delivery.properties, delay_ladder.plain_routing_key(delivery.routing_key)
    last_error = str(error)[:_SHORT]
    story: dict[str, Any] = {
        DeadLetterHeader.REASON: last_error,
        DeadLetterHeader.CATEGORY: error.category.value,
        DeadLetterHeader.CAUSE: error.failure.cause,
        DeadLetterHeader.TASK_ID: record.task_id or None,
        DeadLetterHeader.TASK: record.task_name or None,
        DeadLetterHeader.LAB_INSTANCE_ID: record.lab_instance_id,
        DeadLetterHeader.ATTEMPTS: record.attempt,
        DeadLetterHeader.FIRST_ERROR: task.first_error or last_error,
        DeadLetterHeader.LAST_ERROR: last_error,
        DeadLetterHeader.DEAD_AT: datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        DeadLetterHeader.QUEUE: record.queue,
        DeadLetterHeader.ROUTING_KEY: routing_key,
        DeadLetterHeader.JOB: record.job_name,
        DeadLetterHeader.POD: record.pod_name,
    }
    properties: dict[str, Any] = {
        # By the headers of its last death the broker would move it again. pika gives names as bytes that are
        # not UTF-8.
        "headers": {
            key: value
            for key, value in (original.headers or {}).items()
            if not str(key).startswith("x-last-death-")
        }
        | story,
        "content_type": original.content_type,
        "content_encoding": original.content_encoding,
        "correlation_id": original.correlation_id,
        "delivery_mode": 2,
    }
    try:
        publisher.publish(topology.DEAD_LETTER_EXCHANGE, routing_key, delivery.body, properties)
    except (TypeError, ValueError, OverflowError) as exc:
        # pika decodes header values that it cannot encode again.
        story[DeadLetterHeader.ORIGINAL_HEADERS] = f"{original.headers!r} ({exc})"[:_SHORT]
        properties["headers"] = story
        publisher.publish(topology.DEAD_LETTER_EXCHANGE, routing_key, delivery.body, properties)
    logger.error("message is in the dead-letter queue: %s", error, extra=error.log_fields("dead_lettered"))
