"""Publish what becomes of a failed message: another try after a delay, or the dead-letter queue.

Both are confirmed by the broker before the original is acknowledged: a crash in between gives a
duplicate, never a loss.
"""

from __future__ import annotations

import random
from typing import Any

from dispatcher import message, tasks, topology
from dispatcher.message import TaskMessage
from dispatcher.publisher import Publisher
from jobs.consumer import Delivery
from jobs.settings import JobSettings, RetrySettings

_SHORT = 1000


def retry_delay_s(settings: RetrySettings, retries: int) -> float:
    """Return the seconds to wait before the retry that follows `retries` earlier ones."""
    delay_s = settings.delay_s * settings.backoff**retries
    if settings.jitter:
        delay_s *= random.uniform(0.5, 1.0)
    return min(delay_s, float(topology.DELAYS_S[-1]))


def publish_delayed(publisher: Publisher, task: TaskMessage, delay_s: float) -> None:
    """Publish a task so that it reaches its queue after the delay, in seconds.

    It waits on the lowest rung that is long enough, with its own expiration: a message behind a
    longer one waits for that too, at most the rung's seconds.
    """
    rung = next((s for s in topology.DELAYS_S if s >= delay_s), topology.DELAYS_S[-1])
    body, properties = message.encode(task)
    properties["expiration"] = str(max(1, round(min(delay_s, rung) * 1000)))
    publisher.publish(topology.delay_exchange(rung), tasks.ROUTING_KEYS[task.name], body, properties)


def publish_dead_letter(
    publisher: Publisher, settings: JobSettings, delivery: Delivery, *, reason: str, category: str
) -> None:
    """Put the message, unchanged but for headers that say why, into the dead-letter queue."""
    original = delivery.properties
    why: dict[str, Any] = {
        "x-autolabs-reason": reason[:_SHORT],
        "x-autolabs-category": category,
        "x-autolabs-queue": settings.queue,
        "x-autolabs-routing-key": delivery.routing_key,
        "x-autolabs-job": settings.job_name,
        "x-autolabs-pod": settings.pod_name,
    }
    properties: dict[str, Any] = {
        "headers": {**(original.headers or {}), **why},
        "content_type": original.content_type,
        "content_encoding": original.content_encoding,
        "correlation_id": original.correlation_id,
        "delivery_mode": 2,
    }
    try:
        publisher.publish(topology.DEAD_LETTER_EXCHANGE, delivery.routing_key, delivery.body, properties)
    except (TypeError, ValueError, OverflowError) as exc:
        # pika decodes header values that it cannot encode again.
        why["x-autolabs-original-headers"] = f"{original.headers!r} ({exc})"[:_SHORT]
        properties["headers"] = why
        publisher.publish(topology.DEAD_LETTER_EXCHANGE, delivery.routing_key, delivery.body, properties)
