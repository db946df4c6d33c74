"""What all commands of `autolabs` have in common: their help, exit codes, one sentence for what went wrong.

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
from dataclasses import dataclass

from dispatcher.errors import DispatcherError, InvalidSettings
from dispatcher.interrupts import Interrupted

EXIT_USAGE = 2
_Parsers = argparse._SubParsersAction  # the only name of what add_subparsers returns


def _no_options(_parser: argparse.ArgumentParser) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Command:
    """One `autolabs COMMAND`, or a verb of a group; the docstring of `run` is its help."""

    #: Takes the parsed arguments and returns the exit code.
    run: Callable[[argparse.Namespace], int]
    #: Adds the command's own arguments to its parser.
    options: Callable[[argparse.ArgumentParser], None] = _no_options


@dataclass(frozen=True, slots=True)
class Group:
    """The commands `autolabs GROUP VERB`."""

    about: str
    verbs: Mapping[str, Command]


Commands = Mapping[str, Command | Group]


def make_parser(commands: Commands, *, epilog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of these commands."""
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
        # Or the interpreter tries once more at its end, and tells of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone
