"""Read what is known of a lab, by its id, the id of one of its tasks, or the name of its Pod.

From the database one snapshot, a bounded number of rows, and of the details of a run only what explains it.
From the broker the length of queues, which are not touched.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    RowMapping,
    Select,
    Text,
    case,
    cast,
    func,
    or_,
    select,
    text,
    union_all,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import InstrumentedAttribute

from console.explain.facts import (
    ActionRow,
    Cancellation,
    CleanupRefusal,
    LabFacts,
    LabRow,
    NotificationRow,
    QueueSnapshot,
    Run,
    WaitingRow,
)
from dispatcher.broker import delay_ladder
from dispatcher.broker.connection import answers_within, connect
from dispatcher.broker.topology import DEAD_LETTER_QUEUE
from dispatcher.engine import reason
from dispatcher.errors import DispatcherError
from dispatcher.ids import MAX_ID
from dispatcher.message.envelope import is_short_text
from dispatcher.models import (
    Base,
    DeadLetterAction,
    LabInstance,
    Notification,
    OutboxTask,
    TaskCancellation,
    TaskRun,
)
from dispatcher.settings import BrokerSettings
from dispatcher.tasks import CLEANUP_TIMEOUT_LABS, HEALTH_CHECK_PODS, SYNC_LAB_STATUS
from dispatcher.text import redacted, scrubbed
from jobs.failures import Failure

#: Runs of a lab that are read, the newest; and rows of each other table.
MAX_RUNS = 50
_MAX_ROWS = 20
#: Longest text that is kept, in characters; what a container writes is shorter.
_MAX_CHARS = 4000
#: Seconds for the connection to the broker and for its answer: an operator waits.
QUEUE_TIMEOUT_S = 3.0
_MAX_PROBLEM_CHARS = 200
#: Causes by which a periodic task does nothing until somebody forces it.
_REFUSALS = (Failure.TOO_MANY_AT_ONCE.cause, Failure.CLOCKS_DIFFER.cause)
#: Columns that may be infinity.
_ENDS = ("expires_at", "max_expires_at")
_POD = re.compile(r"lab-instance-([0-9]{1,19})(?:-.*)?")
_DETAILS = ("steps", "cause", "evidence", "seen", "retry_delay_s", "objects_kept_s", "found", "done")
#: Columns that quote whoever said something.
_FREE_TEXTS = ("connection_url", "error_message", "message", "last_error", "details_evidence", "details_seen")
#: Bytes of JSON; a larger part is left out, since nothing of ours writes it.
_MAX_DETAIL_BYTES = 65_536
#: Kind of fact -> its table, whose columns have the names of the fields.
_TABLES: dict[type[Any], type[Base]] = {
    LabRow: LabInstance,
    Run: TaskRun,
    WaitingRow: OutboxTask,
    Cancellation: TaskCancellation,
    NotificationRow: Notification,
    ActionRow: DeadLetterAction,
}
#: The names of the columns that are there, with the table in front.
_PRESENT = text(
    "SELECT relation || '.' || attname FROM unnest(CAST(:tables AS text[])) AS relation"
    " JOIN pg_attribute ON attrelid = to_regclass(relation) WHERE attnum > 0 AND NOT attisdropped"
)


class UnknownLab(DispatcherError):
    """Raised when nothing is known under what was given."""


def read_lab_facts(engine: Engine, given: str) -> LabFacts:
    """Return what the database knows of the lab.

    Raises:
        UnknownLab: there is no such lab, no such task, or the task is about no lab.
        DispatcherError: the database does not answer or refuses.
    """
    try:
        with (
            engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection,
            connection.begin(),
        ):
            connection.execute(text("SET TRANSACTION READ ONLY"))
            return _Reader(connection).read(given)
    except SQLAlchemyError as exc:
        raise DispatcherError(f"the lab could not be looked up in the database: {reason(exc)}") from exc


class _Reader:
    """Read in one transaction; a database of an older revision has no rows of the tables that it lacks."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        tables = [model.__tablename__ for model in _TABLES.values()]
        self._present = set(connection.execute(_PRESENT, {"tables": tables}).scalars())

    def read(self, given: str) -> LabFacts:
        match = _POD.fullmatch(given)
        number = match.group(1) if match else given
        if re.fullmatch("[0-9]{1,19}", number) and 0 < int(number) <= MAX_ID:
            facts = self._facts(int(number))
            if facts.lab or facts.runs or facts.outbox or facts.actions:
                return facts
            if match or not self._labs_of_task(given):
                raise UnknownLab(f"lab {int(number)} is not in the database, and no task was ever about it")
        if match or not given or not is_short_text(given):
            raise UnknownLab(
                "this is no lab, no task and no lab's pod: give 17, a task id or lab-instance-17-…"
            )
        labs = self._labs_of_task(given)
        if not labs:
            raise UnknownLab(
                f"no lab, task or pod {given!r} is known: a task is known once a container took it, or while"
                " it waits in the outbox; give the lab's id"
            )
        lab = next((lab for lab in labs if lab is not None), None)
        if lab is None:
            raise UnknownLab(f"task {given} is about no lab; see: autolabs task status {given}")
        return self._facts(lab)

    def _labs_of_task(self, task_id: str) -> list[int | None]:
        """Return the labs of the rows that name a task; None for a row that is about no lab."""
        tables: list[Select[Any]] = [
            select(TaskRun.lab_instance_id).where(TaskRun.task_id == task_id).limit(_MAX_ROWS),
            select(OutboxTask.lab_instance_id).where(OutboxTask.task_id == task_id),
            select(LabInstance.id.label("lab_instance_id"))
            .where(LabInstance.celery_task_id == task_id)
            .limit(1),
        ]
        if self._has(DeadLetterAction, "task_id"):
            acted = select(DeadLetterAction.lab_instance_id).where(DeadLetterAction.task_id == task_id)
            tables.append(acted.limit(_MAX_ROWS))
        parts = [select(table.subquery().c.lab_instance_id) for table in tables]
        return list(self._connection.execute(union_all(*parts)).scalars())

    def _facts(self, lab_instance_id: int) -> LabFacts:
        lab = next(iter(self._rows(LabRow, LabInstance.id == lab_instance_id, LabInstance.id)), None)
        first = lab.celery_task_id if lab else None
        about = or_(TaskRun.lab_instance_id == lab_instance_id, TaskRun.task_id == first)
        runs = self._newest(Run, about, TaskRun.id, MAX_RUNS)
        outbox = self._rows(WaitingRow, OutboxTask.lab_instance_id == lab_instance_id, OutboxTask.id)
        known = sorted({row.task_id for row in (*runs, *outbox)} | ({first} if first else set()))
        # The message of an action that could not be read has its task id alone.
        acted = or_(DeadLetterAction.lab_instance_id == lab_instance_id, DeadLetterAction.task_id.in_(known))
        count = select(func.count()).select_from(TaskRun).where(about)
        return LabFacts(
            now=self._scalar(select(func.now())),
            lab_instance_id=lab_instance_id,
            lab=lab,
            runs=runs,
            earlier_runs=self._scalar(count) - len(runs),
            outbox=outbox,
            cancellations=self._rows(
                Cancellation, TaskCancellation.task_id.in_(known), TaskCancellation.requested_at, limit=None
            ),
            notifications=self._newest(
                NotificationRow, Notification.lab_instance_id == lab_instance_id, Notification.id, _MAX_ROWS
            ),
            actions=self._newest(ActionRow, acted, DeadLetterAction.id, _MAX_ROWS),
            **self._looked_at(lab_instance_id),
        )

    def _looked_at(self, lab_instance_id: int) -> dict[str, Any]:
        """Return what took the lab's place, and the last looks at all labs."""
        if not self._has(LabInstance, "restart_of"):
            return {}
        return {
            "restarted_as": self._scalar(
                select(LabInstance.id).where(LabInstance.restart_of == lab_instance_id)
            ),
            "health_checked_at": self._last_success(HEALTH_CHECK_PODS),
            "synced_at": self._last_success(SYNC_LAB_STATUS),
            "cleanup_refused": self._cleanup_refused(),
        }

    def _last_success(self, task_name: str) -> Any:
        statement = select(TaskRun.finished_at).where(_of_all_labs(task_name), TaskRun.outcome == "succeeded")
        return self._scalar(statement.order_by(TaskRun.id.desc()).limit(1))

    def _cleanup_refused(self) -> CleanupRefusal | None:
        # A dry run is none.
        dry = func.coalesce(TaskRun.details["result"]["dry_run"].astext, "false") == "true"
        statement = select(TaskRun.finished_at, TaskRun.details["cause"].astext.label("cause"))
        ended = statement.where(_of_all_labs(CLEANUP_TIMEOUT_LABS), TaskRun.finished_at.is_not(None), ~dry)
        row = self._connection.execute(ended.order_by(TaskRun.id.desc()).limit(1)).one_or_none()
        return CleanupRefusal(row.finished_at, row.cause) if row and row.cause in _REFUSALS else None

    def _newest(
        self, kind: type[Any], about: ColumnElement[bool], number: InstrumentedAttribute[int], limit: int
    ) -> tuple[Any, ...]:
        """Return the newest rows, the oldest of them first."""
        return self._rows(kind, about, number.desc(), limit=limit)[::-1]

    def _rows(
        self, kind: type[Any], about: ColumnElement[bool], order: Any, *, limit: int | None = _MAX_ROWS
    ) -> tuple[Any, ...]:
        columns = self._columns(kind)
        if not columns:
            return ()
        found = self._connection.execute(select(*columns).where(about).order_by(order).limit(limit))
        return tuple(_fact(kind, row) for row in found.mappings())

    def _columns(self, kind: type[Any]) -> list[Any]:
        model = _TABLES[kind]
        names = [field.name for field in fields(kind) if self._has(model, field.name)]
        return [column for name in names for column in _selected(getattr(model, name))]

    def _has(self, model: type[Base], column: str) -> bool:
        return f"{model.__tablename__}.{column}" in self._present

    def _scalar(self, statement: Select[Any]) -> Any:
        return self._connection.execute(statement).scalar()


def _of_all_labs(task_name: str) -> ColumnElement[bool]:
    return (TaskRun.task_name == task_name) & TaskRun.lab_instance_id.is_(None)


def _selected(column: InstrumentedAttribute[Any]) -> list[Any]:
    if column.key in _ENDS:
        # infinity is a way of a backend to say never, and more than Python's datetime can hold.
        return [func.least(column, text("timestamptz '9999-01-01Z'")).label(column.key)]
    if column.key == "details":
        parts = ((key, column[key]) for key in _DETAILS)
        return [
            case((func.octet_length(cast(part, Text)) <= _MAX_DETAIL_BYTES, part)).label(f"details_{key}")
            for key, part in parts
        ]
    return [column]


def _fact(kind: type[Any], row: RowMapping) -> Any:
    """Return a row fit to be shown: without what looks like a secret, and with no text too long."""
    values = {name: _shortened(redacted(value), free=name in _FREE_TEXTS) for name, value in row.items()}
    if kind is Run:
        details = {key: values.pop(f"details_{key}") for key in _DETAILS}
        values["details"] = {key: value for key, value in details.items() if value is not None}
    return kind(**values)


def _shortened(value: Any, *, free: bool) -> Any:
    if isinstance(value, str):
        return scrubbed(value[:_MAX_CHARS]) if free else value[:_MAX_CHARS]
    if isinstance(value, dict):
        return {key: _shortened(inner, free=free) for key, inner in value.items()}
    return [_shortened(inner, free=free) for inner in value] if isinstance(value, list) else value


def look_at_queue(settings: BrokerSettings, queue: str) -> QueueSnapshot:
    """Return what the broker says of a queue; a broker that is away is told, not raised."""
    # pika writes the whole story of a connection that failed; the sentence below says it.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    try:
        connection = connect(settings, name="autolabs-explain", timeout_s=QUEUE_TIMEOUT_S)
        try:
            with answers_within(connection, QUEUE_TIMEOUT_S):
                found = connection.channel().queue_declare(queue, passive=True).method
                levels = [delay_ladder.level_name(level) for level in range(delay_ladder.LEVELS)]
                delayed, dead = _count(connection, levels), _count(connection, [DEAD_LETTER_QUEUE])
        finally:
            if connection.is_open:
                connection.close()
    except AMQPError as exc:
        return QueueSnapshot(queue=queue, problem=f"{exc!r}"[:_MAX_PROBLEM_CHARS])
    return QueueSnapshot(
        queue=queue,
        messages=found.message_count,
        consumers=found.consumer_count,
        delayed=delayed,
        dead=dead,
    )


def _count(connection: pika.BlockingConnection, queues: Iterable[str]) -> int | None:
    """Return how many messages wait in some queues; None if one is missing or must not be asked."""
    channel = connection.channel()
    try:
        found = [int(channel.queue_declare(queue, passive=True).method.message_count) for queue in queues]
    except ChannelClosedByBroker:
        return None
    return sum(found)
