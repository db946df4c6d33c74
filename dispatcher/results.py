"""Read what became of a task from the ledger, wait for its end, and cancel what was not begun.

The ledger is written by the job containers; a task that was only published has no run in it yet.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, case, literal, select, text, true
from sqlalchemy.dialects.postgresql import insert

from dispatcher.engine import make_engine, transaction
from dispatcher.errors import InvalidTask, TaskTimeout
from dispatcher.message.envelope import is_short_text
from dispatcher.models import Outcome, TaskCancellation, TaskRun
from dispatcher.task_status import TaskState, TaskStatus, lock_task, state_of

__all__ = ["ResultStore", "TaskState", "TaskStatus"]

#: Factor by which each wait between two looks is longer than the one before.
_GROWTH = 1.5
_COLUMNS = (
    TaskRun.task_name,
    TaskRun.lab_instance_id,
    TaskRun.attempt,
    TaskRun.outcome,
    TaskRun.error_category,
    TaskRun.error_message,
    TaskRun.published_at,
    TaskRun.claimed_at.label("started_at"),
    TaskRun.finished_at,
    TaskRun.details["result"].label("result"),
)


class ResultStore:
    """Look tasks up in the platform's database; one instance per process, shared by its threads.

    With a URL it has a small connection pool of its own, which a forked child replaces by itself. An
    Engine stays the caller's: after a fork the child must dispose of it, as SQLAlchemy asks.
    Every method raises DispatcherError when the database does not answer or refuses.
    """

    def __init__(self, database: str | Engine) -> None:
        """Take the platform's database: postgresql://user:password@host/name, or an Engine."""
        self._owns_engine = isinstance(database, str)
        # The ping, because a web worker idles for longer than a firewall keeps a connection.
        self._engine = (
            make_engine(
                database, application_name="autolabs-results", statement_timeout_s=10, pool_pre_ping=True
            )
            if isinstance(database, str)
            else database
        )

    def status(self, task_id: str) -> TaskStatus:
        """Return what is known now; an id that nobody has begun is PENDING, also an unknown one."""
        # Such as one out of a URL: no task has it, and PostgreSQL takes neither NUL nor lone surrogates.
        if isinstance(task_id, str) and not is_short_text(task_id):
            return TaskStatus(task_id=task_id, state=TaskState.PENDING)
        with self._transaction() as connection:
            return _read(connection, task_id)

    def wait(
        self, task_id: str, timeout_s: float, *, poll_s: float = 0.05, max_poll_s: float = 1.0
    ) -> TaskStatus:
        """Return the status once it is SUCCESS, FAILURE or REVOKED.

        It looks at least once, then after `poll_s` seconds, then ever less often, at last every
        `max_poll_s`; between two looks no connection is held. Raises TaskTimeout if it was none of these
        within `timeout_s` seconds; `.status` has the last state.
        """
        deadline = time.monotonic() + timeout_s
        while not (status := self.status(task_id)).ready:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TaskTimeout(status, timeout_s)
            time.sleep(min(poll_s, left_s))
            poll_s = min(poll_s * _GROWTH, max_poll_s)
        return status

    def cancel(self, task_id: str) -> TaskStatus:
        """Ask that a task is not begun any more, and tell by its state whether that came in time.

        REVOKED: it will not be begun. STARTED: a container works on it; a create leaves off at its next step
        unless its lab is RUNNING by then, all else is finished. SUCCESS or FAILURE: it was over already.
        Cancelling twice is the same as once. The message stays in its queue until a container takes it and
        records the REVOKED. Raises InvalidTask for an id that no task can have.
        """
        if not (task_id and is_short_text(task_id)):
            raise InvalidTask("task_id", "must be a printable text of 1 to 255 bytes")
        with self._transaction(locks=True) as connection:
            connection.execute(text(lock_task(":task_id")), {"task_id": task_id})
            status = _read(connection, task_id)
            if status.ready:
                return status
            connection.execute(insert(TaskCancellation).values(task_id=task_id).on_conflict_do_nothing())
            return _read(connection, task_id)

    def close(self) -> None:
        """Close the pool; an Engine that was given stays open."""
        if self._owns_engine:
            self._engine.dispose()

    def _transaction(self, *, locks: bool = False) -> AbstractContextManager[Connection]:
        return transaction(self._engine, what="the task could not be looked up in the database", locks=locks)


def _read(connection: Connection, task_id: str) -> TaskStatus:
    cancelled = (
        select(TaskCancellation.task_id)
        .where(TaskCancellation.task_id == task_id)
        .exists()
        .label("cancelled")
    )
    # What ended stays ended, as jobs.notify.redis_results has it: only a success replaces an earlier end.
    success = TaskRun.outcome == Outcome.SUCCEEDED.value
    over = TaskRun.outcome.not_in([Outcome.STARTED.value, Outcome.RETRIED.value])
    run = (
        select(*_COLUMNS)
        .where(TaskRun.task_id == task_id)
        .order_by(success.desc(), over.desc(), case((over, TaskRun.finished_at)), TaskRun.id.desc())
        .limit(1)
        .subquery("run")
    )
    # One statement, hence one snapshot: a flag without a run is never seen beside a run that began first.
    row = connection.execute(
        select(cancelled, *run.c).select_from(select(literal(1)).subquery("one").outerjoin(run, true()))
    )
    return _status(task_id, row.mappings().one())


def _status(task_id: str, row: RowMapping) -> TaskStatus:
    fields: dict[str, Any] = {name: value for name, value in row.items() if name != "cancelled"}
    state = state_of(row["outcome"], cancelled=row["cancelled"])
    return TaskStatus(task_id=task_id, state=state, **fields)
