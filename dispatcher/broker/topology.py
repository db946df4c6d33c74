"""Declare the exchanges, the task queues and the dead-letter queue, idempotently, as the setup step does.

KEDA's scaler opens a new channel for every poll of a missing queue, so the queues have to exist
before the ScaledJobs do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dispatcher.broker import delay_ladder

if TYPE_CHECKING:
    from pika.adapters.blocking_connection import BlockingChannel

TASKS_EXCHANGE = "autolabs.tasks"
DEAD_LETTER_EXCHANGE = "autolabs.dlx"
#: Dead letters that the broker makes carry their old routing key, so a fanout takes them all.
DEAD_LETTER_QUEUE = "celery.dlq"
#: The exchange binds by headers what the broker gave up: it expired, or containers died over it.
GIVEN_UP_EXCHANGE = "autolabs.given_up"
GIVEN_UP_REASONS = ("expired", "delivery_limit")
#: Topic: what becomes of labs, for whoever binds a queue (jobs.notify.notifications).
EVENTS_EXCHANGE = "autolabs.events"

QUEUE_HIGH = "celery.lab_operations.high"
QUEUE_NORMAL = "celery.lab_operations"
QUEUE_LOW = "celery.cleanup"

#: Routing keys by queue: one queue per priority, so that a stop overtakes a thousand waiting creates.
BINDINGS: dict[str, tuple[str, ...]] = {
    QUEUE_HIGH: ("lab.delete", "lab.health", "lab.scale"),
    QUEUE_NORMAL: ("lab.create",),
    QUEUE_LOW: ("lab.cleanup", "lab.sync"),
}

#: Crash backstop only: a task that fails on purpose is republished, not requeued.
DELIVERY_LIMIT = 5
#: Header of a copy (jobs.verify.queue_walk): the deliveries before it, which its queue does not know.
EARLIER_DELIVERIES = "x-autolabs-deliveries"


def binding_key(routing_key: str) -> str:
    """Return the key that binds a queue: with the delay of the ladder in front or without one."""
    return f"#.{routing_key}"


def _quorum(dead_letter_exchange: str, **extra: object) -> dict[str, Any]:
    # At-least-once dead lettering needs reject-publish: drop-head silently downgrades it
    # (https://www.rabbitmq.com/docs/quorum-queues#activating-at-least-once-dead-lettering).
    return {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": dead_letter_exchange,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        **extra,
    }


def task_queue_arguments() -> dict[str, Any]:
    """Return the arguments of the three task queues; a Celery app must declare the same."""
    return _quorum(DEAD_LETTER_EXCHANGE, **{"x-delivery-limit": DELIVERY_LIMIT})


def _declare_given_up(channel: BlockingChannel) -> None:
    """Let what the broker gives up reach a container too, beside celery.dlq: its lab must learn of it.

    Celery gives a message with `expires` an expiration as well, so the broker may be the one to find
    it too late. A death takes the expiration away, hence the second queue keeps it until a container comes.
    """
    channel.exchange_declare(GIVEN_UP_EXCHANGE, "headers", durable=True)
    channel.exchange_bind(GIVEN_UP_EXCHANGE, DEAD_LETTER_EXCHANGE)
    for queue in (QUEUE_HIGH, QUEUE_NORMAL):
        for reason in GIVEN_UP_REASONS:
            # Names with x- count only with this x-match; the two headers are the broker's since RabbitMQ
            # 3.13 (https://www.rabbitmq.com/docs/dlx#effects).
            match = {"x-match": "all-with-x", "x-last-death-reason": reason, "x-last-death-queue": queue}
            channel.queue_bind(QUEUE_LOW, GIVEN_UP_EXCHANGE, arguments=match)


def declare_topology(channel: BlockingChannel) -> None:
    """Declare everything; a second call changes nothing.

    Raises pika's ChannelClosedByBroker (406) if a queue exists with other arguments.
    """
    channel.exchange_declare(TASKS_EXCHANGE, "topic", durable=True)
    channel.exchange_declare(DEAD_LETTER_EXCHANGE, "fanout", durable=True)
    channel.exchange_declare(EVENTS_EXCHANGE, "topic", durable=True)
    # -1: people browse this queue, and each look returns the message (RabbitMQ 4.0 drops after 20).
    dead_letters = {"x-queue-type": "quorum", "x-delivery-limit": -1}
    channel.queue_declare(DEAD_LETTER_QUEUE, durable=True, arguments=dead_letters)
    channel.queue_bind(DEAD_LETTER_QUEUE, DEAD_LETTER_EXCHANGE)
    delay_ladder.declare_ladder(channel)
    _declare_tasks(channel)
    _declare_given_up(channel)


def _declare_tasks(channel: BlockingChannel) -> None:
    for queue, routing_keys in BINDINGS.items():
        channel.queue_declare(queue, durable=True, arguments=task_queue_arguments())
        for routing_key in routing_keys:
            # Both as kombu's bind_queue_to_native_delayed_delivery_exchange makes them for a worker.
            channel.exchange_bind(TASKS_EXCHANGE, delay_ladder.DELIVERY_EXCHANGE, binding_key(routing_key))
            channel.queue_bind(queue, TASKS_EXCHANGE, binding_key(routing_key))


def unsettled_deliveries(headers: Mapping[str, Any] | None) -> int:
    """Return how often a message with these headers was delivered and not settled."""
    counts = [(headers or {}).get(name) for name in ("x-delivery-count", EARLIER_DELIVERIES)]
    return sum(max(0, count) for count in counts if isinstance(count, int))


def worn_out(headers: Mapping[str, Any] | None) -> bool:
    """Tell whether the broker would have given the message up, had nobody copied it."""
    return unsettled_deliveries(headers) > DELIVERY_LIMIT


def reason_of_copy(queue: str, headers: Mapping[str, Any] | None) -> str | None:
    """Return why the broker took a message from its queue, if this is the copy by which its lab learns.

    `queue` is where the message is now: copies come to one queue alone, and anywhere else the headers are
    somebody's own, or those of a dead letter that was moved back by hand.
    """
    # Since RabbitMQ 3.13 (https://www.rabbitmq.com/docs/dlx#effects).
    found = headers or {}
    copied = queue == QUEUE_LOW and found.get("x-last-death-queue") in (QUEUE_HIGH, QUEUE_NORMAL)
    return found.get("x-last-death-reason") if copied else None
