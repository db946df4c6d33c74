"""Show and move the end of a lab, and change its resources: the commands `autolabs lab …`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from dispatcher import lab_time
from dispatcher.cli.arguments import moment, positive, row_id, seconds
from dispatcher.errors import DispatcherError, TaskTimeout, needs_extra
from dispatcher.message.envelope import new_task_id
from dispatcher.settings import database_url, read_settings
from dispatcher.task_status import TaskState, TaskStatus
from dispatcher.wording import duration, one_line, shown

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from dispatcher.client import Dispatcher

#: Seconds to wait for a resize: longer than the wait for a node, and than undoing what could not be changed.
_RESIZE_S = 120.0
#: Seconds between two looks at its task.
_POLL_S = 0.3
_SAID = {
    TaskState.PENDING: "waits for a container",
    TaskState.STARTED: "a container works on it",
    TaskState.RETRY: "it is tried again later",
}


def show_time(arguments: argparse.Namespace) -> int:
    """Show when a lab ends, until when it may be extended, and whether its student was warned.

    Settings: DATABASE_URL.
    """
    with _transaction() as connection:
        found = lab_time.read(connection, arguments.lab)
    print(shown(asdict(found), as_json=arguments.json))
    return 0


def extend(arguments: argparse.Namespace) -> int:
    """Move the end of a lab by some minutes, at most to its latest end, and show when it ends then.

    1: it was not moved, and standard error says why. Settings: DATABASE_URL.
    """
    with _transaction() as connection:
        found = lab_time.extend(connection, arguments.lab, arguments.minutes, ends_at=arguments.ends_at)
    print(shown(asdict(found), as_json=arguments.json))
    return 0


def resize(arguments: argparse.Namespace) -> int:
    """Give a lab that runs other limits of cpu and memory, without a restart, and say what became of it.

    0: it has them, or is not RUNNING any more; with --no-wait: it was asked for. 1: it was refused, and the
    lab has what it had; standard error says why. Ctrl-C ends the waiting alone, `autolabs task cancel ID`
    the change. Settings: AMQP_URL, DATABASE_URL (not with --no-wait).
    """
    from dispatcher.client import Dispatcher

    given = {"cpu": arguments.cpu, "memory": arguments.memory}
    new_resources = {name: value for name, value in given.items() if value is not None}
    with Dispatcher() as dispatcher:
        task_id = new_task_id()
        if not arguments.no_wait:
            # A database that is away, or has no such lab, is an error before anything is published.
            dispatcher.lab_time(arguments.lab)
        asked_at = time.monotonic()
        dispatcher.scale_lab(lab_instance_id=arguments.lab, new_resources=new_resources, task_id=task_id)
        print(f"task {task_id}", flush=True)
        if arguments.no_wait:
            return 0
        found = _wait(dispatcher, task_id, arguments.timeout)
        return _tell(found, time.monotonic() - asked_at)


def time_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lab", metavar="ID", type=row_id, help="the lab's id, lab_instances.id")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def extend_options(parser: argparse.ArgumentParser) -> None:
    time_options(parser)
    parser.add_argument("minutes", metavar="MINUTES", type=positive, help="by how much, from 1")
    parser.add_argument(
        "--ends-at",
        metavar="TIME",
        type=moment,
        help="the end as it is now, with its offset (2026-03-01T11:00:00Z): nothing is added if it was moved"
        " meanwhile, nor twice if the command is repeated",
    )


def resize_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lab", metavar="ID", type=row_id, help="the lab's id, lab_instances.id")
    parser.add_argument("--cpu", metavar="CORES", help="such as 1 or 500m; left out: as it is")
    parser.add_argument("--memory", metavar="BYTES", help="such as 1Gi or 512Mi; left out: as it is")
    parser.add_argument("--no-wait", action="store_true", help="end as soon as the broker has the task")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        default=_RESIZE_S,
        help=f"wait no longer for the end, which comes all the same (default {_RESIZE_S:g})",
    )


@contextmanager
def _transaction() -> Iterator[Connection]:
    url = read_settings(os.environ, database_url)
    with needs_extra("db"):
        from dispatcher.engine import open_engine, transaction
    with (
        open_engine(url, application_name="autolabs-lab", statement_timeout_s=10) as engine,
        transaction(engine, what="the lab's row was not read or written", locks=True) as connection,
    ):
        yield connection


def _wait(dispatcher: Dispatcher, task_id: str, timeout_s: float) -> TaskStatus:
    """Return the status at the end, and say on the way what is new. Raises TaskTimeout."""
    began, said = time.monotonic(), ""
    while True:
        found = dispatcher.status(task_id)
        if found.ready:
            return found
        if (news := _progress(found)) != said:
            said = news
            print(f"{duration(time.monotonic() - began):>6}  {said}", file=sys.stderr, flush=True)
        left_s = began + timeout_s - time.monotonic()
        if left_s <= 0:
            raise TaskTimeout(found, timeout_s)
        time.sleep(min(_POLL_S, left_s))


def _progress(found: TaskStatus) -> str:
    said = _SAID.get(found.state, found.state.value)
    return f"{said}: {one_line(found.error_message)}" if found.error_message else said


def _tell(found: TaskStatus, waited_s: float) -> int:
    if found.state is not TaskState.SUCCESS:
        category = f" [{found.error_category}]" if found.error_category else ""
        raise DispatcherError(one_line(found.error_message or f"the task is {found.state}") + category)
    result = found.result or {}
    if "after" not in result:
        print(f"nothing was changed: the lab is {result.get('status')}, {result.get('why')}")
        return 0
    after = ", ".join(f"{name} {value}" for name, value in result["after"].items())
    before = ", ".join(f"{name} {value}" for name, value in result["before"].items())
    if after == before:
        print(f"the lab has {after} already")
        return 0
    print(f"the lab has {after} (had {before}), {duration(waited_s)} after it was asked for")
    return 0
