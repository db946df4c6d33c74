"""Publish what becomes of a failed message: another try after a delay, or the dead-letter queue.

Both are confirmed by the broker before the original is acknowledged: a crash in between gives a
duplicate, never a loss.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from dispatcher import ladder, message, tasks, topology
from dispatcher.message import TaskMessage
from dispatcher.publisher import Publisher
from jobs.consumer import Delivery
from jobs.database.ledger import TaskRunRecord
from jobs.errors import JobError
from jobs.settings import JobSettings, RetrySettings

#: Seconds; a lab that has no room yet is looked at this often at least.
MAX_RETRY_DELAY_S = 640.0

_SHORT = 1000


def retry_delay_s(settings: RetrySettings, retries: int) -> float:
    """Return the seconds to wait before the retry that follows `retries` earlier ones."""
    delay_s = settings.delay_s * settings.backoff**retries
    if settings.jitter:
        delay_s *= random.uniform(0.5, 1.0)
    return min(delay_s, MAX_RETRY_DELAY_S)


def publish_delayed(publisher: Publisher, task: TaskMessage, delay_s: float) -> None:
    """Publish a task so that it reaches its queue after the delay, in seconds, rounded up to whole ones."""
    body, properties = message.encode(task)
    properties.pop("expiration", None)  # it would end the wait on the first level that is longer
    routing_key = ladder.delayed_routing_key(delay_s, tasks.ROUTING_KEYS[task.name])
    publisher.publish(ladder.ENTRY_EXCHANGE, routing_key, body, properties)


def publish_dead_letter(
    publisher: Publisher,
    settings: JobSettings,
    delivery: Delivery,
    *,
    record: TaskRunRecord,
    task: TaskMessage,
    error: JobError,
) -> None:
    """Put the message, unchanged but for headers that tell its story, into the dead-letter queue."""
    original = delivery.properties
    routing_key = ladder.plain_routing_key(delivery.routing_key)
    last_error = str(error)[:_SHORT]
    why: dict[str, Any] = {
        "x-autolabs-reason": last_error,
        "x-autolabs-category": error.category.value,
        "x-autolabs-cause": error.failure.cause,
        "x-autolabs-task-id": record.task_id or None,
        "x-autolabs-task": record.task_name or None,
        "x-autolabs-lab-instance-id": record.lab_instance_id,
        "x-autolabs-attempts": record.attempt,
        "x-autolabs-first-error": task.first_error or last_error,
        "x-autolabs-last-error": last_error,
        "x-autolabs-dead-at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "x-autolabs-queue": settings.queue,
        "x-autolabs-routing-key": routing_key,
        "x-autolabs-job": settings.job_name,
        "x-autolabs-pod": settings.pod_name,
    }
    properties: dict[str, Any] = {
        "headers": {**_without_last_death(original.headers or {}), **why},
        "content_type": original.content_type,
        "content_encoding": original.content_encoding,
        "correlation_id": original.correlation_id,
        "delivery_mode": 2,
    }
    try:
        publisher.publish(topology.DEAD_LETTER_EXCHANGE, routing_key, delivery.body, properties)
    except (TypeError, ValueError, OverflowError) as exc:
        # pika decodes header values that it cannot encode again.
        why["x-autolabs-original-headers"] = f"{original.headers!r} ({exc})"[:_SHORT]
        properties["headers"] = why
        publisher.publish(topology.DEAD_LETTER_EXCHANGE, routing_key, delivery.body, properties)


def _without_last_death(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out why the broker moved the message earlier: by these headers it would do so again."""
    # pika gives a name that is not UTF-8 as bytes.
    return {key: value for key, value in headers.items() if not str(key).startswith("x-last-death-")}
