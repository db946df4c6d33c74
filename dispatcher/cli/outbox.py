"""Publish, list and discard the tasks in the outbox: the commands `autolabs outbox …`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from contextlib import closing
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING

from dispatcher.cli.arguments import natural, row_id
from dispatcher.errors import needs_extra
from dispatcher.settings import ServerSettings, database_url, read_settings
from dispatcher.wording import age, fields, table

if TYPE_CHECKING:
    from dispatcher.outbox.relay import WaitingTask

#: Seconds that `relay --once` goes on while rows are due.
ONCE_TIMEOUT_S = 600.0
#: Seconds; longer than a relay that is just publishing the task.
DISCARD_TIMEOUT_S = 60


def relay(arguments: argparse.Namespace) -> int:
    """Publish what the outbox holds, until stopped by SIGTERM or SIGINT.

    Tasks are published as their transactions commit, in order per lab, and deleted once the broker
    confirmed them. Any number of relays may run at once. A database or a broker that is away is
    waited for. Settings: DATABASE_URL, AMQP_URL, AMQP_PUBLISH_TIMEOUT_S.

    With --once: publish what is due and exit. 0: all of it is published, or there was nothing to do.
    1: something failed; standard error says which task and why. It stays in the outbox.
    """
    settings = read_settings(os.environ, ServerSettings.from_environment)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("pika").setLevel(logging.WARNING)
    return _relay_once(settings) if arguments.once else _relay_until_stopped(settings)


def relay_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="publish what is due, then exit")


def show(arguments: argparse.Namespace) -> int:
    """List the tasks that wait in the outbox, the oldest first.

    A task that failed says how often and why; it is tried again at most a minute later, and younger
    tasks of its lab wait for it. One that can never be published is taken away by `autolabs outbox
    discard ID`. Settings: DATABASE_URL.
    """
    with needs_extra("db"):
        from dispatcher.engine import open_engine
        from dispatcher.outbox.relay import waiting

    url = read_settings(os.environ, database_url)
    with open_engine(url, application_name="autolabs-outbox-list") as engine:
        tasks = waiting(engine, limit=arguments.limit)
    print(json.dumps([asdict(task) for task in tasks], indent=2) if arguments.json else _table(tasks))
    return 0


def show_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.add_argument(
        "--limit", type=natural, default=1000, metavar="N", help="show at most N tasks (default: 1000)"
    )


def discard(arguments: argparse.Namespace) -> int:
    """Delete a task that waits in the outbox, without publishing it, and print it.

    For one that can never be published: it fails again and again, and younger tasks of its lab wait for
    it. Its lab stays as it is. 0: it is deleted. 1: there is no such task. Settings: DATABASE_URL.
    """
    with needs_extra("db"):
        from dispatcher.engine import open_engine
        from dispatcher.outbox.relay import discard

    url, name = read_settings(os.environ, database_url), "autolabs-outbox-discard"
    with open_engine(url, application_name=name, statement_timeout_s=DISCARD_TIMEOUT_S) as engine:
        task = discard(engine, arguments.id)
    if task is None:
        print(f"autolabs: no task {arguments.id} waits in the outbox", file=sys.stderr)
        return 1
    print(f"discarded: {task.id}")
    names = ("task_id", "task_name", "kwargs", "eta", "expires", "failures", "last_error")
    print(fields({name: getattr(task, name) for name in names}))
    return 0


def discard_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "id", type=row_id, metavar="ID", help="the number in the first column of `outbox list`"
    )


def _relay_once(settings: ServerSettings) -> int:
    with needs_extra("db"):
        from dispatcher.outbox.relay import relay_due

    report = relay_due(settings, name="autolabs-outbox", timeout_s=ONCE_TIMEOUT_S)
    print(f"published: {len(report.published)}")
    for task_id, why in report.failed.items():
        print(f"autolabs: task {task_id} was not published: {why}", file=sys.stderr)
    if report.database_error is not None:
        print(f"autolabs: {report.database_error}", file=sys.stderr)
    return 0 if report.complete else 1


def _relay_until_stopped(settings: ServerSettings) -> int:
    with needs_extra("db"):
        from dispatcher.outbox.listener import relay_forever
    from dispatcher.broker.publisher import Publisher

    stop = threading.Event()

    def ask_to_stop(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    publish_timeout_s = settings.broker.publish_timeout_s
    with closing(Publisher(settings.broker, name="autolabs-outbox")) as publisher:
        relay_forever(settings.database_url, publisher, stop, publish_timeout_s=publish_timeout_s)
    return 0


def _table(tasks: list[WaitingTask]) -> str:
    if not tasks:
        return "the outbox is empty"
    rows: list[tuple[object, ...]] = [("ID", "TASK ID", "TASK", "LAB", "AGE", "FAILURES", "LAST ERROR")]
    for task in tasks:
        lab = "" if task.lab_instance_id is None else task.lab_instance_id
        error = task.last_error or ""
        rows.append((task.id, task.task_id, task.task_name, lab, age(task.age_s), task.failures, error))
    return table(rows)
