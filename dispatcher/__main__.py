"""Command line: `autolabs` or `python -m dispatcher`.

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
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from dispatcher.cli import labs, outbox, tasks
from dispatcher.dlq import commands as dlq_commands
from dispatcher.errors import DispatcherError, InvalidSettings
from dispatcher.explain import commands as explain_commands
from dispatcher.extras import needs_extra
from dispatcher.interrupts import Interrupted
from dispatcher.settings import BrokerSettings, database_url, read_settings


def _no_options(_parser: argparse.ArgumentParser) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Command:
    """One `autolabs GROUP VERB`; the docstring of `run` is its help, the first line its summary."""

    #: Takes the parsed arguments and returns the exit code.
    run: Callable[[argparse.Namespace], int]
    #: Adds the command's own arguments to its parser.
    options: Callable[[argparse.ArgumentParser], None] = _no_options


def upgrade_database(_arguments: argparse.Namespace) -> int:
    """Apply the missing migrations. Idempotent."""
    url = read_settings(os.environ, database_url)
    with needs_extra("db"):
        from dispatcher import database

        revision = database.upgrade(url)  # which imports the driver and the migrations
    print(f"database is at revision {revision}")
    return 0


def declare_topology(_arguments: argparse.Namespace) -> int:
    """Declare exchanges, queues and bindings. Idempotent."""
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
    return 0


#: Group -> what it is about, and its commands. What a command needs is imported when it runs.
_GROUPS: dict[str, tuple[str, dict[str, Command]]] = {
    "db": ("Prepare the database.", {"upgrade": Command(upgrade_database)}),
    "topology": ("Prepare the broker.", {"declare": Command(declare_topology)}),
    "outbox": (
        "Publish and show the tasks that backends added in their own transactions.",
        {
            "relay": Command(outbox.relay, outbox.relay_options),
            "list": Command(outbox.show, outbox.show_options),
            "discard": Command(outbox.discard, outbox.discard_options),
        },
    ),
    "dlq": (
        "Look at, requeue and discard what is in the dead-letter queue.",
        {
            "list": Command(dlq_commands.show_all, dlq_commands.show_all_options),
            "show": Command(dlq_commands.show, dlq_commands.show_options),
            "requeue": Command(dlq_commands.requeue, dlq_commands.requeue_options),
            "discard": Command(dlq_commands.discard, dlq_commands.discard_options),
        },
    ),
    "lab": (
        "Show when a lab ends, extend it, and change what it may use.",
        {
            "time": Command(labs.show_time, labs.time_options),
            "extend": Command(labs.extend, labs.extend_options),
            "resize": Command(labs.resize, labs.resize_options),
        },
    ),
    "task": (
        "Look a task up, or keep it from being begun.",
        {
            "status": Command(tasks.status, tasks.options),
            "cancel": Command(tasks.cancel, tasks.options),
        },
    ),
}

#: Commands without a group.
_COMMANDS: dict[str, Command] = {
    "explain": Command(explain_commands.explain, explain_commands.options),
}
#: Command -> its module with `run` and `options`, and its summary: only who names it has the module imported,
#: which in a backend's process may be a package of the same name.
_PLATFORM_COMMANDS = {
    "verify": ("jobs.verify_command", "Prove that database, cluster and broker say the same."),
}


#: Group -> its module with VERBS (verb -> `run` and `options`), and what it is about; imported likewise.
_PLATFORM_GROUPS = {
    "schedule": ("cronjobs.schedule_commands", "Look at and change when periodic tasks run."),
}


def make_parser(named: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of all commands; if one is named, the platform's others are without their options."""
    parser = argparse.ArgumentParser(
        prog="autolabs", description="Prepare and look after the database and the broker of AutoLabs jobs."
    )
    groups = parser.add_subparsers(dest="group", required=True, metavar="COMMAND")
    for group, (about, commands) in _GROUPS.items():
        verbs = groups.add_parser(group, help=about, description=about).add_subparsers(
            dest="verb", required=True, metavar="COMMAND"
        )
        for verb, command in commands.items():
            _add_command(verbs, verb, command)
    for name, command in _COMMANDS.items():
        _add_command(groups, name, command)
    for name, (module, summary) in _PLATFORM_COMMANDS.items():
        if named in (None, name):
            _add_command(groups, name, _platform_command(name, module))
        else:
            groups.add_parser(name, help=summary)
    for name, (module, about) in _PLATFORM_GROUPS.items():
        if named in (None, name):
            _add_platform_group(groups, name, module, about)
        else:
            groups.add_parser(name, help=about)
    return parser


def _add_platform_group(
    groups: argparse._SubParsersAction[argparse.ArgumentParser], name: str, module: str, about: str
) -> None:
    found = _platform_module(module)
    if found is None:
        _add_command(groups, name, _elsewhere(name, module))
        return
    verbs = groups.add_parser(name, help=about, description=about).add_subparsers(
        dest="verb", required=True, metavar="COMMAND"
    )
    for verb, (run, options) in found.VERBS.items():
        _add_command(verbs, verb, Command(run, options))


def _add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, command: Command
) -> None:
    text = inspect.getdoc(command.run) or ""
    parser = commands.add_parser(
        name,
        help=text.partition("\n")[0],
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.options(parser)
    parser.set_defaults(run=command.run)


def _platform_command(name: str, module: str) -> Command:
    found = _platform_module(module)
    return Command(found.run, found.options) if found else _elsewhere(name, module)


def _platform_module(module: str) -> ModuleType | None:
    """Return a module of the platform's own packages: the image and a checkout have them beside this one."""
    beside = str(Path(__file__).resolve().parents[1])
    if beside not in sys.path:
        sys.path.append(beside)
    try:
        return import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name not in (module, module.partition(".")[0]):
            raise
        return None


def _elsewhere(name: str, module: str) -> Command:
    def run(_arguments: argparse.Namespace) -> int:
        """Look into the cluster as well; only in the platform's image or in a checkout."""
        raise DispatcherError(f"{name} needs {module}, which is in the platform's image and in a checkout")

    def any_words(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)

    return Command(run, any_words)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    arguments = make_parser(words[0] if words else "").parse_args(words)
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return _complain("interrupted", 128 + signal.SIGINT)
    except Interrupted as exc:
        return _complain(str(exc), exc.exit_code)
    except InvalidSettings as exc:
        return _complain(str(exc), 2)
    except DispatcherError as exc:
        return _complain(str(exc), 1)


def _complain(text: str, code: int) -> int:
    print(f"autolabs: {text}", file=sys.stderr)
    return code


def _nobody_reads() -> bool:
    """Tell whether whoever read the output has gone, as in `dlq list | head`; the rest is dropped then."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    gone = any(events & (select.POLLERR | select.POLLHUP) for _, events in output.poll(0))
    if gone:
        # Or the interpreter tries once more at its end, and tells of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


if __name__ == "__main__":
    sys.exit(main())
