"""Publish what the outbox holds: in order per lab, at least once, by any number of relays at a time.

A row is locked, published, and deleted once the broker confirmed it, in one transaction that lasts no
longer than a publish may. Whatever ends the relay in between leaves the row, to be published again
under the same task id.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Row, bindparam, text

from dispatcher.broker.publisher import Publisher
from dispatcher.engine import open_engine, transaction
from dispatcher.errors import DispatcherError, NotConfirmed, NotSent, PublishError, Unencodable
from dispatcher.message.envelope import TaskMessage
from dispatcher.message.request import TaskPublisher
from dispatcher.settings import ServerSettings

logger = logging.getLogger(__name__)

#: Rows per transaction.
BATCH = 500
#: Seconds that one transaction may spend on publishing.
PUBLISH_TIMEOUT_S = 10.0
#: Seconds before a failed row is tried again: doubled from the first to the last.
FIRST_BACKOFF_S, MAX_BACKOFF_S = 1, 60
MAX_ERROR_CHARS = 500

# SKIP LOCKED alone would let a second relay take a lab's next row while the first still publishes its
# oldest. It cannot here: a row qualifies only if the statement's snapshot has no older row of its lab,
# and the oldest stays visible, locked or not, until its deletion is committed, which is after the
# broker confirmed it. Hence READ COMMITTED, where every statement has a fresh snapshot. A relay that
# lost its locks with its connection may publish the oldest once more, late, but never a younger one.
# The order is that of ids: of transactions on one lab that do not overlap, as those that begin by
# locking its lab_instances row. kwargs are taken as text, because a number that Python refuses to read
# must fail its own row and not the fetch of all.
#
# A scalar subquery is one index lookup per row. NOT EXISTS becomes a join, and with the statistics of a
# table that was empty when it was last vacuumed, as an outbox is, the join compares every two rows.
_OLDEST_OF_ITS_LAB = """
    coalesce((SELECT min(older.id) FROM task_outbox AS older
        WHERE older.lab_instance_id = task.lab_instance_id), id) = id
"""
_DUE = text(
    f"""
    SELECT id, task_id, task_name, CAST(kwargs AS text) AS kwargs, eta, expires
    FROM task_outbox AS task WHERE next_attempt_at <= now() AND {_OLDEST_OF_ITS_LAB}
    ORDER BY id LIMIT :batch FOR UPDATE OF task SKIP LOCKED
    """  # noqa: S608
)
_NEXT_DUE_S = text(
    f"""
    SELECT CAST(extract(epoch FROM
        greatest(least(min(next_attempt_at), now() + interval '1 second' * :limit), now()) - now()
    ) AS float) FROM task_outbox AS task WHERE {_OLDEST_OF_ITS_LAB}
    """  # noqa: S608
)
# A relay whose machine vanished would hold its rows until TCP gives up, two hours by default.
_END_IF_LOST = text("SELECT set_config('idle_in_transaction_session_timeout', :milliseconds, true)")
_DELETE = text("DELETE FROM task_outbox WHERE id IN :ids").bindparams(bindparam("ids", expanding=True))
# The clock, because now() is when the transaction began, a publish timeout ago.
_POSTPONE = text(
    f"""
    UPDATE task_outbox AS task SET failures = failures + 1, last_error = failed.error,
        next_attempt_at = clock_timestamp() + interval '1 second'
            * least({MAX_BACKOFF_S}, {FIRST_BACKOFF_S} * power(2, least(failures, 10)))
    FROM unnest(CAST(:ids AS bigint[]), CAST(:errors AS text[])) AS failed (id, error)
    WHERE task.id = failed.id
    """  # noqa: S608
)
_DISCARD = text(
    """
    DELETE FROM task_outbox WHERE id = :id
    RETURNING id, task_id, task_name, CAST(kwargs AS text) AS kwargs, eta, expires, failures, last_error
    """
)
_WAITING = text(
    """
    SELECT id, task_id, task_name, lab_instance_id, failures, last_error,
        CAST(extract(epoch FROM clock_timestamp() - greatest(created_at, 'epoch')) AS float) AS age_s,
        next_attempt_at <= now() AS due
    FROM task_outbox ORDER BY id LIMIT :limit
    """
)


@dataclass(frozen=True, slots=True)
class RelayReport:
    """The work of one relay; what it did not publish is still in the outbox, for the next one."""

    #: Ids of the tasks that the broker confirmed.
    published: tuple[str, ...] = ()
    #: Task id -> why it was not published.
    failed: Mapping[str, str] = field(default_factory=dict)
    #: Why the database ended the relay before its time, or None.
    database_error: str | None = None
    #: True: the broker confirmed nothing; or a call did not try, because it had done so a moment ago.
    broker_away: bool = False
    #: True: another thread of this process relays, and what this call did not publish is left to it.
    elsewhere: bool = False

    @property
    def complete(self) -> bool:
        """True if nothing that was due is left, but what another relay holds."""
        return not self.failed and self.database_error is None and not self.broker_away


@dataclass(frozen=True, slots=True)
class WaitingTask:
    """A row of the outbox; `age_s` in seconds since it was added."""

    id: int
    task_id: str
    task_name: str
    lab_instance_id: int | None
    failures: int
    last_error: str | None
    age_s: float
    due: bool


@dataclass(frozen=True, slots=True)
class DiscardedTask:
    """A row that was deleted unpublished; `kwargs` is JSON, which Python may refuse to read."""

    id: int
    task_id: str
    task_name: str
    kwargs: str
    eta: datetime | None
    expires: datetime | None
    failures: int
    last_error: str | None


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One transaction of a relay."""

    published: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    #: False when nothing was due, or nothing could be published just now.
    go_on: bool = False
    #: True when the broker confirmed nothing.
    broker_away: bool = False


class Tally:
    """The sum of several batches."""

    def __init__(self) -> None:
        self._published: list[str] = []
        self._failed: dict[str, str] = {}
        self._broker_away = False

    def add(self, done: BatchReport) -> None:
        self._published += done.published
        self._failed.update(done.failed)
        self._broker_away = done.broker_away

    def report(self, error: DispatcherError | None = None, *, elsewhere: bool = False) -> RelayReport:
        """Return the sum of all; log the error of the database that ended it."""
        if error is not None:
            logger.warning("outbox: %s", error, extra={"action": "outbox_database"})
        failed = self._failed.keys() - self._published  # after a failure within the same call
        return RelayReport(
            tuple(self._published),
            {task_id: why for task_id, why in self._failed.items() if task_id in failed},
            None if error is None else str(error),
            broker_away=self._broker_away,
            elsewhere=elsewhere,
        )


def relay_once(
    engine: Engine,
    publisher: TaskPublisher,
    *,
    batch: int = BATCH,
    timeout_s: float = PUBLISH_TIMEOUT_S,
    publish_timeout_s: float = PUBLISH_TIMEOUT_S,
) -> RelayReport:
    """Publish until nothing is due, the broker does not answer, or `timeout_s` seconds are over.

    It raises nothing of the broker or the database, because the tasks are safe: it logs a warning, and the
    report says what the next relay or the sweep has to do. Each transaction has `batch` rows at most, and
    `publish_timeout_s` seconds for publishing; the database's answers come on top. Any driver will do.
    """
    deadline = time.monotonic() + timeout_s
    tally = Tally()
    try:
        while True:
            left_s = deadline - time.monotonic()
            done = relay_batch(engine, publisher, batch=batch, timeout_s=min(left_s, publish_timeout_s))
            tally.add(done)
            # A last second would only fail what the next call publishes.
            if not done.go_on or deadline - time.monotonic() < min(1.0, timeout_s / 2):
                return tally.report()
    except DispatcherError as exc:
        return tally.report(exc)


def relay_due(settings: ServerSettings, *, name: str, timeout_s: float) -> RelayReport:
    """Publish what is due, over connections of its own under this name."""
    with (
        open_engine(settings.database_url, application_name=name) as engine,
        closing(Publisher(settings.broker, name=name)) as publisher,
    ):
        publish_timeout_s = settings.broker.publish_timeout_s
        return relay_once(engine, publisher, timeout_s=timeout_s, publish_timeout_s=publish_timeout_s)


def relay_batch(
    engine: Engine, publisher: TaskPublisher, *, batch: int = BATCH, timeout_s: float = PUBLISH_TIMEOUT_S
) -> BatchReport:
    """Publish at most `batch` rows that are due, in one transaction. Raises DispatcherError."""
    started = time.monotonic()
    with transaction(engine, what="the outbox was not read or written") as connection:
        rows = connection.execute(_DUE, {"batch": batch}).all()
        if not rows:
            return BatchReport()
        connection.execute(_END_IF_LOST, {"milliseconds": str(round(1000 * (timeout_s + 30)))})
        errors = _publish(publisher, rows, timeout_s)
        _settle(connection, rows, errors)
    published = tuple(row.task_id for row in rows if row.id not in errors)
    failed = {row.task_id: str(errors[row.id]) for row in rows if row.id in errors}
    _log(published, failed, time.monotonic() - started)
    unconfirmed = [error for error in errors.values() if isinstance(error, NotConfirmed)]
    away = not published and not all(isinstance(error, NotSent) for error in unconfirmed)
    return BatchReport(published, failed, go_on=bool(published) or not unconfirmed, broker_away=away)


def next_due_s(engine: Engine, *, limit_s: float) -> float:
    """Return the seconds, 0 to `limit_s`, until a row may be published; those held by a relay count."""
    with transaction(engine, what="the outbox was not read") as connection:
        return float(connection.execute(_NEXT_DUE_S, {"limit": limit_s}).scalar_one())


def waiting(engine: Engine, *, limit: int = 1000) -> list[WaitingTask]:
    """Return what is in the outbox, the oldest first. Raises DispatcherError."""
    with transaction(engine, what="the outbox was not read") as connection:
        return [WaitingTask(**row) for row in connection.execute(_WAITING, {"limit": limit}).mappings()]


def discard(engine: Engine, row_id: int) -> DiscardedTask | None:
    """Delete a row without publishing it; None if it is not there. Raises DispatcherError.

    A row that a relay is just publishing is waited for: if that succeeds, it is not there.
    """
    with transaction(engine, what="the outbox was not written") as connection:
        row = connection.execute(_DISCARD, {"id": row_id}).mappings().one_or_none()
    return None if row is None else DiscardedTask(**row)


def _publish(publisher: TaskPublisher, rows: Sequence[Row[Any]], timeout_s: float) -> dict[int, PublishError]:
    """Return what went wrong by row id.

    Nobody may have checked a row before. What is a message at all is published: the container is the one
    place that dead-letters a task with a reason and fails its lab.
    """
    errors: dict[int, PublishError] = {}
    messages: dict[int, TaskMessage] = {}
    for row in rows:
        try:
            kwargs = json.loads(row.kwargs)
        except (ValueError, RecursionError) as exc:  # too many digits, too many brackets
            why = f"task {row.task_id} cannot be made a message: {exc}"
            errors[row.id] = Unencodable(row.task_id, why)
            continue
        messages[row.id] = TaskMessage(
            name=row.task_name, id=row.task_id, kwargs=kwargs, eta=row.eta, expires=row.expires
        )
    outcomes = publisher.publish_tasks([*messages.values()], timeout_s=timeout_s)
    for row_id, error in zip(messages, outcomes, strict=True):
        if error is not None:
            errors[row_id] = error
    return errors


def _settle(connection: Connection, rows: Sequence[Row[Any]], errors: Mapping[int, PublishError]) -> None:
    if published := [row.id for row in rows if row.id not in errors]:
        connection.execute(_DELETE, {"ids": published})
    # What was not sent because this process was busy says nothing of the task, nor of the broker.
    failed = {row_id: error for row_id, error in errors.items() if not isinstance(error, NotSent)}
    if failed:
        texts = [str(error)[:MAX_ERROR_CHARS] for error in failed.values()]
        connection.execute(_POSTPONE, {"ids": [*failed], "errors": texts})


def _log(published: Sequence[str], failed: Mapping[str, str], duration_s: float) -> None:
    extra = {
        "action": "outbox_batch",
        "published": len(published),
        "failed": len(failed),
        "duration_s": round(duration_s, 3),
    }
    if failed:
        first = next(iter(failed.values()))
        logger.warning("outbox: published %d, failed %d: %s", len(published), len(failed), first, extra=extra)
    else:
        logger.info("outbox: published %d", len(published), extra=extra)
