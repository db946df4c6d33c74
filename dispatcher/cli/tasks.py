"""Show and cancel a task: the commands `autolabs task …`."""

from __future__ import annotations

import argparse
import os
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING

from dispatcher.errors import needs_extra
from dispatcher.settings import database_url, read_settings
from dispatcher.task_status import TaskState
from dispatcher.wording import shown

if TYPE_CHECKING:
    from dispatcher.results import ResultStore

_TOO_LATE = {
    TaskState.STARTED: "a container works on it; a create stops at its next step, all else is finished",
    TaskState.SUCCESS: "the task had ended already",
    TaskState.FAILURE: "the task had ended already",
}


def status(arguments: argparse.Namespace) -> int:
    """Show what became of a task.

    An id that no container has taken yet is PENDING, also an unknown one. Settings: DATABASE_URL.
    """
    with closing(_store()) as results:
        found = results.status(arguments.task_id)
    print(shown(asdict(found), as_json=arguments.json))
    if found.state is TaskState.PENDING and not arguments.json:
        print("no container has run this task; the id may be wrong")
    return 0


def cancel(arguments: argparse.Namespace) -> int:
    """Ask that a task is not begun any more, or left off if it is a create.

    A lab that waits for its start becomes STOPPED once a container meets the cancelled task. 0: it will
    not be begun. 1: it was begun already, and may be finished, or over. Settings: DATABASE_URL.
    """
    with closing(_store()) as results:
        found = results.cancel(arguments.task_id)
    print(shown(asdict(found), as_json=arguments.json))
    if found.state is TaskState.REVOKED:
        if found.outcome is None and not arguments.json:
            print("no container has run this task, and none will begin it")
        return 0
    if not arguments.json:
        print(f"not cancelled: {_TOO_LATE[found.state]}")
    return 1


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task_id", metavar="ID", help="the task's id, as in lab_instances.celery_task_id")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def _store() -> ResultStore:
    with needs_extra("db"):
        from dispatcher.results import ResultStore

    return ResultStore(read_settings(os.environ, database_url))
