"""Add a task within the backend's own transaction: published after its commit, never without it.

The table may also be filled by plain SQL from any language (`task_name` and `kwargs` alone). A relay
(dispatcher.outbox.relay) publishes what is committed, at least once, under the id that `add` returns.
SQLAlchemy is needed by `add` alone, and is the backend's own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dispatcher.message.request import TaskRequest
from dispatcher.tasks import Payload

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session, scoped_session

_INSERT = "INSERT INTO task_outbox (task_id, task_name, kwargs, eta, expires) VALUES "
_ROW = "(%s, %s, CAST(%s AS jsonb), %s, %s)"


class Cursor(Protocol):
    """The part of a DB-API cursor that `add_with_cursor` needs; parameters are written as %s."""

    def execute(self, query: Any, params: Any = ..., /) -> Any: ...


def add(session: Session | scoped_session[Session] | Connection, task: Payload | TaskRequest) -> str:
    """Insert a task into the outbox and return its id, which belongs in `lab_instances.celery_task_id`.

    Nothing is flushed or committed: the row lives and dies with the caller's transaction. With an
    AsyncSession or AsyncConnection: `await session.run_sync(outbox.add, task)`. Tasks of one lab are
    published in the order in which their transactions add them, one after the other.

    Raises:
        InvalidTask: an argument is not acceptable; nothing was sent to the database.
        sqlalchemy.exc.IntegrityError: the outbox holds a task of this id already.
    """
    columns = _columns(task)
    from sqlalchemy import insert

    from dispatcher.engine import connection_of
    from dispatcher.models import OutboxTask

    connection_of(session, OutboxTask).execute(insert(OutboxTask).values(**columns))
    return str(columns["task_id"])


def add_with_cursor(cursor: Cursor, task: Payload | TaskRequest) -> str:
    """Insert a task by a DB-API cursor with %s parameters, and return its id; as `add` otherwise.

    For psycopg, psycopg2, and Django: `with transaction.atomic(), connection.cursor() as cursor: ...`.
    """
    values = _values(task)
    cursor.execute(_INSERT + _ROW, tuple(values))
    return str(values[0])


def add_missing_with_cursor(cursor: Cursor, tasks: Sequence[TaskRequest]) -> None:
    """Insert by one statement those tasks of which the outbox holds none of the same id."""
    if tasks:
        rows = ", ".join([_ROW] * len(tasks))
        values = tuple(value for task in tasks for value in _values(task))
        cursor.execute(f"{_INSERT}{rows} ON CONFLICT (task_id) DO NOTHING", values)


def _values(task: Payload | TaskRequest) -> list[Any]:
    columns = _columns(task)
    return [*{**columns, "kwargs": json.dumps(columns["kwargs"])}.values()]


def _columns(task: Payload | TaskRequest) -> dict[str, Any]:
    # A countdown counts from the call, not from the commit.
    message = (task if isinstance(task, TaskRequest) else TaskRequest(task)).to_message()
    return {
        "task_id": message.id,
        "task_name": message.name,
        "kwargs": message.kwargs,
        "eta": message.eta,
        "expires": message.expires,
    }
