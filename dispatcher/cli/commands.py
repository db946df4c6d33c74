"""The commands of a backend's administrator by name; what one needs is imported when it runs."""

from __future__ import annotations

import argparse
import os

from dispatcher.cli import labs, outbox, tasks
from dispatcher.cli.program import Command, Commands, Group
from dispatcher.errors import DispatcherError
from dispatcher.extras import needs_extra
from dispatcher.settings import BrokerSettings, database_url, read_settings


def upgrade_database(_arguments: argparse.Namespace) -> int:
    """Apply the missing migrations. Idempotent."""
    url = read_settings(os.environ, database_url)
    with needs_extra("db"):
        from dispatcher.migrations import migrate

        revision = migrate.upgrade(url)  # which imports the driver and the migrations
    print(f"database is at revision {revision}")
    return 0


def declare_topology(_arguments: argparse.Namespace) -> int:
    """Declare exchanges, queues and bindings. Idempotent."""
    from pika.exceptions import AMQPError

    from dispatcher.broker import topology
    from dispatcher.broker.connection import connect

    settings = read_settings(os.environ, BrokerSettings.from_environment)
    try:
        connection = connect(settings, name="autolabs-topology")
        try:
            topology.declare_topology(connection.channel())
        finally:
            if connection.is_open:
                connection.close()
    except AMQPError as exc:
        raise DispatcherError(f"topology was not declared: {exc!r}") from exc
    print(f"queues are declared: {', '.join(topology.BINDINGS)}, {topology.DEAD_LETTER_QUEUE}")
    return 0


COMMANDS: Commands = {
    "db": Group("Prepare the database.", {"upgrade": Command(upgrade_database)}),
    "topology": Group("Prepare the broker.", {"declare": Command(declare_topology)}),
    "outbox": Group(
        "Publish and show the tasks that backends added in their own transactions.",
        {
            "relay": Command(outbox.relay, outbox.relay_options),
            "list": Command(outbox.show, outbox.show_options),
            "discard": Command(outbox.discard, outbox.discard_options),
        },
    ),
    "lab": Group(
        "Show when a lab ends, extend it, and change what it may use.",
        {
            "time": Command(labs.show_time, labs.time_options),
            "extend": Command(labs.extend, labs.extend_options),
            "resize": Command(labs.resize, labs.resize_options),
        },
    ),
    "task": Group(
        "Look a task up, or keep it from being begun.",
        {
            "status": Command(tasks.status, tasks.options),
            "cancel": Command(tasks.cancel, tasks.options),
        },
    ),
}
