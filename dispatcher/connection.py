"""Open AMQP connections with the timeouts of BrokerSettings."""

from __future__ import annotations

import pika

from dispatcher.settings import BrokerSettings


def connect(settings: BrokerSettings, *, name: str) -> pika.BlockingConnection:
    """Open a connection that the broker's management lists under `name`.

    Raises pika's AMQPConnectionError after one attempt per address; the caller owns retries.
    """
    parameters = pika.URLParameters(settings.url)
    parameters.heartbeat = settings.heartbeat_s
    parameters.blocked_connection_timeout = settings.publish_timeout_s
    parameters.socket_timeout = settings.connect_timeout_s
    parameters.stack_timeout = 2 * settings.connect_timeout_s
    parameters.client_properties = {"connection_name": name}
    return pika.BlockingConnection(parameters)
