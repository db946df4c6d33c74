"""Read what is known of a lab, by its id, the id of one of its tasks, or the name of its Pod.

One snapshot, a bounded number of rows, and of the details of a run only what explains it.
"""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Executable,
    Row,
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
    LabFacts,
    LabRow,
    NotificationRow,
    Refused,
    Run,
    WaitingRow,
)
from dispatcher.engine import reason
from dispatcher.errors import DispatcherError
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
from dispatcher.tasks import CLEANUP_TIMEOUT_LABS, HEALTH_CHECK_PODS, MAX_ID, SYNC_LAB_STATUS
from dispatcher.text import redacted, scrubbed
from jobs.failures import Failure

#: Runs of a lab that are read, the newest; and rows of each other table.
MAX_RUNS = 50
_MAX_ROWS = 20
#: Of any text; what a container writes is shorter.
_MAX_CHARS = 4000
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
#: Tables that are newer than revision 0003, or have newer columns; an older database has no rows of them.
_NEWER_TABLES = (LabInstance.__tablename__, Notification.__tablename__, DeadLetterAction.__tablename__)
#: The names of those that are there, and of their columns with the table in front.
_PRESENT = text(
    "SELECT relation FROM unnest(CAST(:tables AS text[])) AS relation WHERE to_regclass(relation) IS NOT NULL"
    " UNION ALL SELECT relation || '.' || attname FROM unnest(CAST(:tables AS text[])) AS relation"
    " JOIN pg_attribute ON attrelid = to_regclass(relation) WHERE attnum > 0 AND NOT attisdropped"
)


class UnknownLab(DispatcherError):
    """Raised when nothing is known under what was given."""


def read_lab_facts(engine: Engine, given: str) -> LabFacts:
    """Return what is known of the lab.

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
            return _read(connection, given)
    except SQLAlchemyError as exc:
        raise DispatcherError(f"the lab could not be looked up in the database: {reason(exc)}") from exc


def _read(connection: Connection, given: str) -> LabFacts:
    present = set(connection.execute(_PRESENT, {"tables": list(_NEWER_TABLES)}).scalars())
    match = _POD.fullmatch(given)
    number = match.group(1) if match else given
    if re.fullmatch("[0-9]{1,19}", number) and 0 < int(number) <= MAX_ID:
        facts = _facts(connection, int(number), present)
        if facts.lab or facts.runs or facts.outbox or facts.actions:
            return facts
        if match or not _task_rows(connection, given, present):
            raise UnknownLab(f"lab {int(number)} is not in the database, and no task was ever about it")
    if match or not given or not is_short_text(given):
        raise UnknownLab("this is no lab, no task and no lab's pod: give 17, a task id or lab-instance-17-…")
    return _facts(connection, _lab_of_task(connection, given, present), present)


def _lab_of_task(connection: Connection, task_id: str, present: set[str]) -> int:
    rows = _task_rows(connection, task_id, present)
    for row in rows:
        if row.lab_instance_id is not None:
            return int(row.lab_instance_id)
    if rows:
        raise UnknownLab(f"task {task_id} is about no lab; see: autolabs task status {task_id}")
    raise UnknownLab(
        f"no lab, task or pod {task_id!r} is known: a task is known once a container took it, or while it"
        " waits in the outbox; give the lab's id"
    )


def _task_rows(connection: Connection, task_id: str, present: set[str]) -> list[Row[Any]]:
    """Return the rows that name a task, with their labs."""
    tables: list[Select[Any]] = [
        select(TaskRun.lab_instance_id).where(TaskRun.task_id == task_id).limit(_MAX_ROWS),
        select(OutboxTask.lab_instance_id).where(OutboxTask.task_id == task_id),
        select(LabInstance.id.label("lab_instance_id")).where(LabInstance.celery_task_id == task_id).limit(1),
    ]
    if DeadLetterAction.__tablename__ in present:
        acted = select(DeadLetterAction.lab_instance_id).where(DeadLetterAction.task_id == task_id)
        tables.append(acted.limit(_MAX_ROWS))
    parts = [select(table.subquery().c.lab_instance_id) for table in tables]
    return list(connection.execute(union_all(*parts)))


def _facts(connection: Connection, lab_instance_id: int, present: set[str]) -> LabFacts:
    lab = _lab(connection, lab_instance_id, present)
    runs, earlier = _runs(connection, lab_instance_id, lab.celery_task_id if lab else None)
    outbox = _outbox(connection, lab_instance_id)
    known = {run.task_id for run in runs} | {row.task_id for row in outbox}
    if lab and lab.celery_task_id:
        known.add(lab.celery_task_id)
    return LabFacts(
        now=connection.execute(select(func.now())).scalar_one(),
        lab_instance_id=lab_instance_id,
        lab=lab,
        runs=tuple(runs),
        earlier_runs=earlier,
        outbox=tuple(outbox),
        cancellations=tuple(_cancellations(connection, known)),
        notifications=tuple(_notifications(connection, lab_instance_id, present)),
        actions=tuple(_actions(connection, lab_instance_id, known, present)),
        **_looked_at(connection, lab_instance_id, present),
    )


def _looked_at(connection: Connection, lab_instance_id: int, present: set[str]) -> dict[str, Any]:
    """Return what took the lab's place, and when all labs were looked at last."""
    if f"{LabInstance.__tablename__}.restart_of" not in present:
        return {}
    again = select(LabInstance.id).where(LabInstance.restart_of == lab_instance_id)

    def last(task_name: str) -> Any:
        of_all_labs = (TaskRun.task_name == task_name) & TaskRun.lab_instance_id.is_(None)
        statement = select(TaskRun.finished_at).where(of_all_labs, TaskRun.outcome == "succeeded")
        return connection.execute(statement.order_by(TaskRun.id.desc()).limit(1)).scalar()

    return {
        "restarted_as": connection.execute(again).scalar(),
        "health_checked_at": last(HEALTH_CHECK_PODS),
        "synced_at": last(SYNC_LAB_STATUS),
        "cleanup_refused": _cleanup_refused(connection),
    }


def _cleanup_refused(connection: Connection) -> Refused | None:
    of_all_labs = (TaskRun.task_name == CLEANUP_TIMEOUT_LABS) & TaskRun.lab_instance_id.is_(None)
    # A dry run is none.
    dry = func.coalesce(TaskRun.details["result"]["dry_run"].astext, "false") == "true"
    statement = select(TaskRun.finished_at, TaskRun.details["cause"].astext.label("cause"))
    ended = statement.where(of_all_labs, TaskRun.finished_at.is_not(None), ~dry)
    row = connection.execute(ended.order_by(TaskRun.id.desc()).limit(1)).one_or_none()
    return Refused(row.finished_at, row.cause) if row and row.cause in _REFUSALS else None


def _lab(connection: Connection, lab_instance_id: int, present: set[str]) -> LabRow | None:
    # infinity is a way of a backend to say never, and more than Python's datetime can hold.
    never = text("timestamptz '9999-01-01Z'")
    columns = [
        func.least(column, never).label(column.key) if column.key in _ENDS else column
        for column in _columns(LabInstance, LabRow, present=present)
    ]
    statement = select(*columns).where(LabInstance.id == lab_instance_id)
    return next((LabRow(**row) for row in _rows(connection, statement)), None)


def _runs(connection: Connection, lab_instance_id: int, task_id: str | None) -> tuple[list[Run], int]:
    """Return the newest runs, the oldest of them first, and how many there were before."""
    about = or_(TaskRun.lab_instance_id == lab_instance_id, TaskRun.task_id == task_id)
    details = [
        case((func.octet_length(cast(part, Text)) <= _MAX_DETAIL_BYTES, part)).label(f"details_{key}")
        for key, part in ((key, TaskRun.details[key]) for key in _DETAILS)
    ]
    statement = select(*_columns(TaskRun, Run, but="details"), *details).where(about)
    rows = _newest(connection, statement, TaskRun.id, MAX_RUNS)
    total = connection.execute(select(func.count()).select_from(TaskRun).where(about)).scalar_one()
    return [_run(row) for row in rows], total - len(rows)


def _run(row: dict[str, Any]) -> Run:
    details = {key: row.pop(f"details_{key}") for key in _DETAILS}
    return Run(**row, details={key: value for key, value in details.items() if value is not None})


def _outbox(connection: Connection, lab_instance_id: int) -> list[WaitingRow]:
    statement = (
        select(*_columns(OutboxTask, WaitingRow))
        .where(OutboxTask.lab_instance_id == lab_instance_id)
        .order_by(OutboxTask.id)
        .limit(_MAX_ROWS)
    )
    return [WaitingRow(**row) for row in _rows(connection, statement)]


def _cancellations(connection: Connection, task_ids: set[str]) -> list[Cancellation]:
    statement = (
        select(*_columns(TaskCancellation, Cancellation))
        .where(TaskCancellation.task_id.in_(sorted(task_ids)))
        .order_by(TaskCancellation.requested_at)
    )
    return [Cancellation(**row) for row in _rows(connection, statement)]


def _notifications(connection: Connection, lab_instance_id: int, present: set[str]) -> list[NotificationRow]:
    if Notification.__tablename__ not in present:
        return []
    about = Notification.lab_instance_id == lab_instance_id
    statement = select(*_columns(Notification, NotificationRow, present=present)).where(about)
    return [NotificationRow(**row) for row in _newest(connection, statement, Notification.id, _MAX_ROWS)]


def _actions(
    connection: Connection, lab_instance_id: int, task_ids: set[str], present: set[str]
) -> list[ActionRow]:
    if DeadLetterAction.__tablename__ not in present:
        return []
    # The message of one that could not be read has its task id alone.
    about = or_(
        DeadLetterAction.lab_instance_id == lab_instance_id, DeadLetterAction.task_id.in_(sorted(task_ids))
    )
    statement = select(*_columns(DeadLetterAction, ActionRow)).where(about)
    return [ActionRow(**row) for row in _newest(connection, statement, DeadLetterAction.id, _MAX_ROWS)]


def _columns(
    model: type[Base], kind: type[Any], *, but: str | None = None, present: set[str] | None = None
) -> list[Any]:
    """Return the columns that have the names of a dataclass's fields, and are `present`."""
    return [
        getattr(model, field.name)
        for field in fields(kind)
        if field.name != but and (present is None or f"{model.__tablename__}.{field.name}" in present)
    ]


def _newest(
    connection: Connection, statement: Select[Any], number: InstrumentedAttribute[int], limit: int
) -> list[dict[str, Any]]:
    return _rows(connection, statement.order_by(number.desc()).limit(limit))[::-1]


def _rows(connection: Connection, statement: Executable) -> list[dict[str, Any]]:
    """Return rows fit to be shown: without what looks like a secret, and with no text too long."""
    return [_clean(row) for row in connection.execute(statement).mappings()]


def _clean(row: RowMapping) -> dict[str, Any]:
    return {name: _shortened(redacted(value), free=name in _FREE_TEXTS) for name, value in row.items()}


def _shortened(value: Any, *, free: bool) -> Any:
    if isinstance(value, str):
        return scrubbed(value[:_MAX_CHARS]) if free else value[:_MAX_CHARS]
    if isinstance(value, dict):
        return {key: _shortened(inner, free=free) for key, inner in value.items()}
    return [_shortened(inner, free=free) for inner in value] if isinstance(value, list) else value
