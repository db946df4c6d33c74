"""Give a plain Celery app, 5.4 or later, the settings with which it publishes into our topology."""

from __future__ import annotations

from typing import Any

from dispatcher import tasks
from dispatcher.broker import topology

#: Seconds for one answer of a result backend on Redis.
REDIS_TIMEOUT_S = 5.0


def celery_config(*, result_backend: str | None = None, confirm_timeout_s: float = 10.0) -> dict[str, Any]:
    """Return settings for `app.conf.update(...)` of an app for labs alone; needs Celery's kombu.

    They replace the app's queues, routes and default queue, so tasks of the backend's own belong on
    another app, and no worker may be started with this one: it would take the labs' messages.

    Tasks are routed by name, as JSON only. A publish waits for the broker's confirm and fails if no
    queue takes the message, which Celery does not do by default. It declares nothing: writing to
    `autolabs.tasks` and `celery_delayed_27` is all that the app's broker user needs.

    Args:
        result_backend: where AsyncResult looks, such as redis://host/0; None leaves the app's own setting.
        confirm_timeout_s: seconds for one attempt; Celery makes four (task_publish_retry_policy).
    """
    from kombu import Exchange, Queue

    exchange = Exchange(topology.TASKS_EXCHANGE, type="topic", durable=True)
    queues = [
        # By one key of several: Celery looks up the exchange of a queue, which one with `bindings` lacks.
        Queue(
            queue,
            exchange=exchange,
            routing_key=routing_keys[0],
            durable=True,
            queue_arguments=topology.task_queue_arguments(),
        )
        for queue, routing_keys in topology.BINDINGS.items()
    ]
    publish = {
        "exchange": topology.TASKS_EXCHANGE,
        # Celery 5.5 sends tasks for later over the delay ladder unless this says direct.
        "exchange_type": "topic",
        "mandatory": True,
        # Also how long py-amqp waits for the confirm: it has no setting, only this argument.
        "timeout": confirm_timeout_s,
    }
    return {
        "task_queues": queues,
        "task_default_queue": topology.QUEUE_NORMAL,
        "task_default_exchange": topology.TASKS_EXCHANGE,
        "task_default_exchange_type": "topic",
        "task_default_routing_key": "lab.create",
        "task_routes": {name: {**publish, "routing_key": key} for name, key in tasks.ROUTING_KEYS.items()},
        "task_create_missing_queues": False,
        "broker_transport_options": {
            "confirm_publish": True,
            # Otherwise a connection that got no confirm is waited for again, without end, when it is closed.
            "read_timeout": confirm_timeout_s,
            "write_timeout": confirm_timeout_s,
        },
        "task_serializer": "json",
        "accept_content": ["json"],
        **(_results(result_backend) if result_backend else {}),
    }


def _results(backend: str) -> dict[str, Any]:
    return {
        "result_backend": backend,
        "result_serializer": "json",
        "result_accept_content": ["json"],
        "result_extended": False,
        # Before it publishes, Celery subscribes to the result, unless the sender ignores it. Its own
        # limits, 20 tries of 120 seconds, let a Redis that does not answer hold a web request.
        "redis_socket_connect_timeout": REDIS_TIMEOUT_S,
        "redis_socket_timeout": REDIS_TIMEOUT_S,
        "result_backend_transport_options": {"retry_policy": {"max_retries": 3}},
    }
