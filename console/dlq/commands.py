"""Look at, requeue and discard dead letters: the commands `autolabs dlq …`."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import socket
import sys
from collections import Counter
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from console.dlq import output
from console.dlq.letters import DeadLetter, Selector, names
from dispatcher.cli.arguments import natural, row_id
from dispatcher.cli.program import EXIT_USAGE, complain
from dispatcher.errors import DispatcherError
from dispatcher.failure_contract import Category
from dispatcher.settings import BrokerSettings, ServerSettings, read_settings
from dispatcher.wording import fields, many

if TYPE_CHECKING:
    from console.dlq.queue import Browsed
    from console.dlq.run import Run

#: Messages under one id that `show` prints at most: a task may die more than once.
_MAX_SHOWN = 20


def show_all(arguments: argparse.Namespace) -> int:
    """List the messages in celery.dlq, the first to come first, and count them by cause.

    KEY and TASK ID name a message to the other commands. Nothing is changed: every message is back in
    its place when the command ends. Settings: AMQP_URL.
    """
    from console.dlq.queue import browse

    selector = _selector(arguments)
    shown: list[DeadLetter] = []
    causes: output.Causes = Counter()

    def look(found: Browsed) -> bool:
        letter = found.letter
        if selector.matches(letter):
            causes[letter.cause, letter.category] += 1
            if len(shown) < arguments.limit:
                shown.append(letter)
        return False

    total = browse(read_settings(os.environ, BrokerSettings.from_environment), look)
    if arguments.json:
        print(output.as_json(shown, causes, total))
        return 0
    if shown:
        print(output.table(shown), end="\n\n")
    if (more := sum(causes.values()) - len(shown)) > 0:
        print(f"and {more} more; --limit shows them")
    print(output.summary(causes, total))
    return 0


def show(arguments: argparse.Namespace) -> int:
    """Show everything that is known of a message, with its headers and arguments.

    What looks like a secret is hidden. 1: no such message is in celery.dlq; what was done with it earlier
    is said, if anything. Settings: AMQP_URL; DATABASE_URL for what is not there.
    """
    from console.dlq.queue import browse

    selector = Selector(ids=(arguments.id,))
    known: list[dict[str, Any]] = []

    def look(found: Browsed) -> bool:
        if selector.matches(found.letter) and len(known) < _MAX_SHOWN:
            known.append(output.details(found))
        return False

    browse(read_settings(os.environ, BrokerSettings.from_environment), look)
    if known:
        print(json.dumps(known, indent=2) if arguments.json else "\n\n".join(map(fields, known)))
        return 0
    try:
        with _run(arguments, "show") as run:
            run.tell_of_missing(selector, arguments.id)
    except DispatcherError as exc:
        complain(f"{output.not_there(arguments.id)}; what was done with it earlier is not known: {exc}", 1)
    return 1


def requeue(arguments: argparse.Namespace) -> int:
    """Publish messages of celery.dlq again, as first attempts under their ids, and take them away.

    First mend what made them fail. A message that would do nothing is refused: a create whose lab is not
    PENDING, what is no task, a task that was cancelled; --force publishes it all the same. Who did it and
    when is kept in the table dead_letter_actions. A crash in between loses nothing, but may publish a
    message twice, which does no harm.

    0: done, or done earlier. 1: something was refused, failed, or is not known. Settings: AMQP_URL,
    DATABASE_URL, AMQP_PUBLISH_TIMEOUT_S.
    """
    return _act(arguments, "requeue")


def discard(arguments: argparse.Namespace) -> int:
    """Take messages out of celery.dlq and keep them in the table dead_letter_actions.

    The row has who did it and when, headers and body; of a body of more than 1 MiB the beginning.

    0: done, or done earlier. 1: something failed, or is not known. Settings: AMQP_URL, DATABASE_URL.
    """
    return _act(arguments, "discard")


def show_all_options(parser: argparse.ArgumentParser) -> None:
    _add_filters(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument(
        "--limit", type=natural, default=100, metavar="N", help="show at most N messages (default: 100)"
    )


def show_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="a task id, or a key of `dlq list`")
    parser.add_argument("--json", action="store_true", help="print a JSON array")


def requeue_options(parser: argparse.ArgumentParser) -> None:
    discard_options(parser)
    parser.add_argument("--force", action="store_true", help="publish also what would do nothing")
    parser.add_argument(
        "--drop-expires", action="store_true", help="publish without the time until which it was to be begun"
    )


def discard_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "ids", nargs="*", metavar="ID", help="a task id, or a key of `dlq list` (6 characters or more)"
    )
    parser.add_argument("--all", action="store_true", help="every message")
    _add_filters(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask before more than one message")
    parser.add_argument("--actor", metavar="NAME", help="who does it (default: user@host)")


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lab", type=row_id, metavar="N", help="messages about this lab (lab_instances.id)")
    parser.add_argument("--category", choices=[category.value for category in Category])
    parser.add_argument("--cause", metavar="CAUSE", help="messages with this cause, as `dlq list` says it")
    parser.add_argument("--task", metavar="NAME", help="messages of this task")


def _selector(arguments: argparse.Namespace) -> Selector:
    return Selector(
        ids=tuple(getattr(arguments, "ids", ())),
        lab=arguments.lab,
        category=arguments.category,
        cause=arguments.cause,
        task=arguments.task,
    )


def _act(arguments: argparse.Namespace, verb: str) -> int:
    selector = _selector(arguments)
    if (selector == Selector()) is not arguments.all:
        say_which = "name messages by ID, --lab, --category, --cause or --task, or say --all alone"
        return complain(say_which, EXIT_USAGE)
    with _run(arguments, verb) as run:
        chosen = run.choose(selector)
        missing = [wanted for wanted in selector.ids if not any(names(wanted, found) for found in chosen)]
        known = [run.tell_of_missing(selector, wanted) for wanted in missing]
        if not chosen:
            return 0 if all(known) and (missing or run.tell_of_missing(selector)) else 1
        if arguments.dry_run:
            done = run.pretend(chosen)
        elif len(chosen) > 1 and not arguments.yes and not _agreed(chosen, verb):
            return 1
        else:
            done = run.act(chosen)
        return 0 if done and all(known) else 1


def _agreed(chosen: list[DeadLetter], verb: str) -> bool:
    what = f"{verb} {many(len(chosen), 'message')}"
    if not sys.stdin.isatty():
        complain(f"this would {what}: repeat it with --yes, or look with --dry-run", 1)
        return False
    print(output.table(chosen))
    try:
        answer = input(f"{what}? [y/N] ")
    except (EOFError, KeyboardInterrupt):
        answer = ""
        print()
    if answer.strip().lower() in ("y", "yes"):
        return True
    print("no message was changed", file=sys.stderr)
    return False


def _run(arguments: argparse.Namespace, verb: str) -> AbstractContextManager[Run]:
    from console.dlq.run import open_run

    return open_run(
        read_settings(os.environ, ServerSettings.from_environment),
        verb=verb,
        actor=getattr(arguments, "actor", None) or _actor(),
        force=getattr(arguments, "force", False),
        drop_expires=getattr(arguments, "drop_expires", False),
    )


def _actor() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
