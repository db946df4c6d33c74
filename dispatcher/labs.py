"""Ask for a lab in the backend's own transaction: one row and its task, whatever a student clicks.

A second request of the same student for the same lab gives the lab that lives already, and a student who has
as many live labs as allowed is refused. A lock of the transaction, one per student, holds it against requests
at the same moment. It needs no rights but to read and insert, and works through a transaction pooler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from dispatcher import outbox
from dispatcher.errors import DispatcherError, InvalidTask, TooManyLabs
from dispatcher.message.envelope import new_task_id
from dispatcher.message.request import TaskRequest
from dispatcher.tasks import CreateLabPod, own_mapping

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session, scoped_session

#: Statement and its values -> the rows.
_Run = Callable[[str, Sequence[Any]], Sequence[Any]]
_Add = Callable[[TaskRequest], Any]

#: Live labs of one student at a time, where the backend names no other number.
MAX_LIVE = 3

_LOCK = """
SELECT current_setting('transaction_isolation'),
 pg_advisory_xact_lock(hashtextextended('autolabs.student.' || CAST(%s AS text), 0))
"""
# A lab past its end is not counted: the cleanup, some minutes away, stops it.
_LIVE = """
SELECT id, lab_id, status, celery_task_id FROM lab_instances
WHERE student_id = %s AND status IN ('PENDING', 'RUNNING') AND stop_requested_at IS NULL
 AND expires_at > now()
ORDER BY id
"""
_INSERT = "INSERT INTO lab_instances (lab_id, student_id, celery_task_id) VALUES (%s, %s, %s) RETURNING id"


@dataclass(frozen=True, slots=True)
class RequestedLab:
    """The lab that a student gets: a new one, or the one that lives already."""

    lab_instance_id: int
    #: PENDING, or RUNNING of one that lives already.
    status: str
    #: None where the backend that asked for the lab before did not write it down.
    task_id: str | None
    #: False: the lab was there before, and nothing was inserted.
    created: bool


class FetchingCursor(outbox.Cursor, Protocol):
    """The part of a DB-API cursor that `request_with_cursor` needs; parameters are written as %s."""

    def fetchall(self) -> Sequence[Any]: ...


#: Any acceptable id: the lab has none before its row is inserted.
_NO_LAB_YET = 1


def request(
    session: Session | scoped_session[Session] | Connection,
    *,
    lab_id: int,
    student_id: int,
    docker_image: str,
    resources: Mapping[str, str] | None = None,
    network_isolated: bool = True,
    max_live: int = MAX_LIVE,
) -> RequestedLab:
    """Insert the row of a lab and the task of its start, or return the live lab of this student and lab_id.

    Nothing is committed: call `relay_outbox` after the commit, if `created`. With an AsyncSession:
    `await session.run_sync(lambda sync: labs.request(sync, lab_id=…, …))`. Image and resources are the
    course's to say, never the student's.

    Raises:
        InvalidTask: an argument is not acceptable; nothing was sent to the database.
        TooManyLabs: the student has `max_live` live labs, none of them of this lab_id.
        DispatcherError: the transaction is REPEATABLE READ, which does not see a request of the same moment;
            READ COMMITTED (PostgreSQL's default) and SERIALIZABLE are allowed.
    """
    from sqlalchemy import text

    from dispatcher.engine import connection_of
    from dispatcher.models import LabInstance

    connection = connection_of(session, LabInstance)

    def run(statement: str, values: Sequence[Any]) -> Sequence[Any]:
        named = statement
        for number in range(len(values)):
            named = named.replace("%s", f":p{number}", 1)
        return connection.execute(text(named), {f"p{n}": value for n, value in enumerate(values)}).all()

    wanted = _wanted(lab_id, student_id, docker_image, resources, network_isolated)
    return _request(run, lambda task: outbox.add(session, task), wanted, max_live)


def request_with_cursor(
    cursor: FetchingCursor,
    *,
    lab_id: int,
    student_id: int,
    docker_image: str,
    resources: Mapping[str, str] | None = None,
    network_isolated: bool = True,
    max_live: int = MAX_LIVE,
) -> RequestedLab:
    """Do the same by a DB-API cursor with %s parameters, in its transaction: psycopg, psycopg2, Django."""

    def run(statement: str, values: Sequence[Any]) -> Sequence[Any]:
        cursor.execute(statement, tuple(values))
        return cursor.fetchall()

    wanted = _wanted(lab_id, student_id, docker_image, resources, network_isolated)
    return _request(run, lambda task: outbox.add_with_cursor(cursor, task), wanted, max_live)


def _wanted(
    lab_id: int,
    student_id: int,
    docker_image: str,
    resources: Mapping[str, str] | None,
    network_isolated: bool,
) -> CreateLabPod:
    """Return the task, whose lab gets its id with its row. Raises InvalidTask, before anything is sent."""
    return CreateLabPod(
        lab_instance_id=_NO_LAB_YET,
        lab_id=lab_id,
        student_id=student_id,
        docker_image=docker_image,
        resources=own_mapping(resources),
        network_isolated=network_isolated,
    )


def _request(run: _Run, add: _Add, wanted: CreateLabPod, max_live: int) -> RequestedLab:
    if type(max_live) is not int or max_live < 1:
        raise InvalidTask("max_live", f"{max_live!r:.80} is not allowed; it must be 1 or more")
    ((isolation, _),) = run(_LOCK, [wanted.student_id])
    if isolation == "repeatable read":
        raise DispatcherError(
            "a REPEATABLE READ transaction cannot request a lab, for it does not see a request of the same"
            " moment; allowed are READ COMMITTED and SERIALIZABLE"
        )
    live = run(_LIVE, [wanted.student_id])
    for lab_instance_id, lab_id, status, task_id in live:
        if lab_id == wanted.lab_id:
            return RequestedLab(lab_instance_id, status, task_id, created=False)
    if len(live) >= max_live:
        raise TooManyLabs(wanted.student_id, [row[0] for row in live], max_live)
    task_id = new_task_id()
    ((lab_instance_id,),) = run(_INSERT, [wanted.lab_id, wanted.student_id, task_id])
    add(TaskRequest(replace(wanted, lab_instance_id=lab_instance_id), task_id))
    return RequestedLab(lab_instance_id, "PENDING", task_id, created=True)
