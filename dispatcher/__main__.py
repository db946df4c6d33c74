"""Command line of the dispatcher: `autolabs` or `python -m dispatcher`."""

from __future__ import annotations

import argparse
import os
import sys

from dispatcher.errors import DispatcherError
from dispatcher.settings import BrokerSettings, Environment, read_settings


def _database_url(env: Environment) -> str:
    return env.url("DATABASE_URL", ("postgresql", "postgresql+psycopg2"))


def upgrade_database() -> None:
    """Apply the missing migrations."""
    from dispatcher import database

    revision = database.upgrade(read_settings(os.environ, _database_url))
    print(f"database is at revision {revision}")


def declare_topology() -> None:
    """Declare exchanges, queues and bindings."""
    from pika.exceptions import AMQPError

    from dispatcher import topology
    from dispatcher.connection import connect

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


_COMMANDS = {
    ("db", "upgrade"): upgrade_database,
    ("topology", "declare"): declare_topology,
}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="autolabs", description="Prepare the database and the broker for AutoLabs jobs."
    )
    groups = parser.add_subparsers(dest="group", required=True, metavar="GROUP")
    for group, verb in _COMMANDS:
        command = _COMMANDS[group, verb]
        sub = groups.add_parser(group, help=command.__doc__)
        verbs = sub.add_subparsers(dest="verb", required=True, metavar="COMMAND")
        verbs.add_parser(verb, help=f"{command.__doc__} Idempotent.")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 done, 1 failed (the reason is on standard error)."""
    arguments = make_parser().parse_args(argv)
    try:
        _COMMANDS[arguments.group, arguments.verb]()
    except DispatcherError as exc:
        print(f"autolabs: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
