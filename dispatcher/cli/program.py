"""Run the command that a command line names: its help, its exit code, one sentence for what went wrong.

COMMANDS are those of a backend's administrator; the console adds its own, as Command and Group.

Exit codes: 0 done, 1 failed (the reason is on standard error), 2 the command line or a setting is wrong, 130
and 143 interrupted by SIGINT and SIGTERM, 141 nobody reads the output any more; what else a command has is in
its help.
"""

from __future__ import annotations

import argparse
import inspect
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dispatcher.cli import labs, outbox, tasks
from dispatcher.errors import DispatcherError, InvalidSettings, needs_extra
from dispatcher.interrupts import Interrupted
from dispatcher.settings import BrokerSettings, database_url, read_settings

EXIT_USAGE = 2
_Parsers = argparse._SubParsersAction  # the only name of what add_subparsers returns


@dataclass(frozen=True, slots=True)
class Command:
    """One `autolabs COMMAND`, or a verb of a group; the docstring of `run` is its help."""

    #: Takes the parsed arguments and returns the exit code.
    run: Callable[[argparse.Namespace], int]
    #: Adds the command's own arguments to its parser.
    options: Callable[[argparse.ArgumentParser], None] = field(default=lambda _parser: None)


@dataclass(frozen=True, slots=True)
class Group:
    """The commands `autolabs GROUP VERB`."""

    about: str
    verbs: Mapping[str, Command]


Commands = Mapping[str, Command | Group]


def make_parser(commands: Commands, *, epilog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="autolabs",
        description="Prepare and look after the database and the broker of AutoLabs jobs.",
        epilog=epilog,
    )
    parsers = parser.add_subparsers(dest="group", required=True, metavar="COMMAND")
    for name, command in commands.items():
        if isinstance(command, Command):
            _add_command(parsers, name, command)
            continue
        group = parsers.add_parser(name, help=command.about, description=command.about)
        verbs = group.add_subparsers(dest="verb", required=True, metavar="COMMAND")
        for verb, one in command.verbs.items():
            _add_command(verbs, verb, one)
    return parser


def _add_command(parsers: _Parsers[argparse.ArgumentParser], name: str, command: Command) -> None:
    text = inspect.getdoc(command.run) or ""
    parser = parsers.add_parser(
        name,
        help=text.partition("\n")[0],
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.options(parser)
    parser.set_defaults(run=command.run)


def run(parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    """Run the command that the words name, and return its exit code."""
    arguments = parser.parse_args(words)
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return complain("interrupted", 128 + signal.SIGINT)
    except Interrupted as exc:
        return complain(str(exc), exc.exit_code)
    except InvalidSettings as exc:
        return complain(str(exc), EXIT_USAGE)
    except DispatcherError as exc:
        return complain(str(exc), 1)


def complain(text: str, code: int) -> int:
    """Say on standard error why a command failed, and return its exit code."""
    print(f"autolabs: {text}", file=sys.stderr)
    return code


def _nobody_reads() -> bool:
    """Tell whether whoever read the output has gone, as in `dlq list | head`; the rest is dropped then."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    gone = any(events & (select.POLLERR | select.POLLHUP) for _, events in output.poll(0))
    if gone:
        # Otherwise the interpreter flushes once more at its end, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


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
        {"status": Command(tasks.status, tasks.options), "cancel": Command(tasks.cancel, tasks.options)},
    ),
}
