"""Settings with which a plain Celery app publishes into our topology."""

from __future__ import annotations

from typing import Any

from dispatcher import tasks, topology


def celery_config() -> dict[str, Any]:
    """Return settings for `app.conf.update(...)`; needs the kombu that Celery brings along.

    Queues are declared with the very arguments of the topology (others would be refused with
    406), tasks are routed by name, and publishes wait for the broker's confirm, which Celery
    does not do by default.
    """
    from kombu import Exchange, Queue, binding

    exchange = Exchange(topology.TASKS_EXCHANGE, type="topic", durable=True)
    queues = [
        Queue(
            queue,
            bindings=[binding(exchange, routing_key=key) for key in routing_keys],
            durable=True,
            queue_arguments=topology.task_queue_arguments(),
        )
        for queue, routing_keys in topology.BINDINGS.items()
    ]
    routes = {
        name: {
            "exchange": topology.TASKS_EXCHANGE,
            "routing_key": routing_key,
            # Celery 5.5 sends an eta on quorum queues to an exchange that only its own workers
            # declare, unless this says direct; it has no other effect, and the container honours the eta.
            "exchange_type": "direct",
        }
        for name, routing_key in tasks.ROUTING_KEYS.items()
    }
    return {
        "task_queues": queues,
        "task_default_queue": topology.QUEUE_NORMAL,
        "task_default_exchange": topology.TASKS_EXCHANGE,
        "task_default_exchange_type": "topic",
        "task_default_routing_key": "lab.create",
        "task_routes": routes,
        "task_create_missing_queues": False,
        "broker_transport_options": {"confirm_publish": True, "confirm_timeout": 10},
        "task_serializer": "json",
        "accept_content": ["json"],
    }
