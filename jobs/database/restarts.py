"""Start another lab in place of a lost one: a new row for the rest of the old one's time, and its create.

Both are written in the transaction that makes the old lab FAILED. States only move forward and ids are never
reused, so it is a lab of its own; `restart_of` is unique, so there is one at most.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime

from dispatcher import outbox, tasks
from dispatcher.errors import InvalidTask
from dispatcher.failure_contract import Audience, EventType
from dispatcher.message.envelope import new_task_id
from dispatcher.message.request import TaskRequest
from jobs.database.connection import Cursor
from jobs.database.lab_rows import SET_TOMBSTONE
from jobs.database.ledger import TaskRunRecord, last_request
from jobs.database.notifications import NewNotification, add_notification
from jobs.errors import JobError

logger = logging.getLogger(__name__)

#: A lab with less time left is not worth another start.
_LEAST = "1 minute"
# Count the labs of which this one is the latest restart.
_CHAIN = """
WITH RECURSIVE earlier (restart_of, length) AS (
 SELECT restart_of, 0 FROM lab_instances WHERE id = %s
 UNION ALL
 SELECT lab.restart_of, length + 1 FROM earlier JOIN lab_instances AS lab ON lab.id = earlier.restart_of
 WHERE length < %s)
SELECT max(length) FROM earlier
"""
# Insert the lab that takes the place of a lost one.
_INSERT = f"""
INSERT INTO lab_instances
 (lab_id, student_id, expires_at, max_expires_at, extended_to, restart_of, celery_task_id)
SELECT lab_id, student_id, expires_at, max_expires_at, extended_to, id, %s FROM lab_instances
 WHERE id = %s AND expires_at > now() + interval '{_LEAST}'
ON CONFLICT (restart_of) DO NOTHING RETURNING id
"""  # noqa: S608  # a constant
# Say in the row of the lost lab which one takes its place.
_SAY = "UPDATE lab_instances SET error_message = error_message || %s WHERE id = %s"
# Set the tombstone of all that were started in place of a lab. Who asks to remove a lab that was FAILED
# before means that one alone.
_STOP = f"""
WITH RECURSIVE later (id) AS (
 SELECT next.id FROM lab_instances AS next JOIN lab_instances AS lost ON lost.id = next.restart_of
 WHERE lost.id = %s AND lost.failed_at >= %s
 UNION ALL SELECT next.id FROM later JOIN lab_instances AS next ON next.restart_of = later.id)
{SET_TOMBSTONE} id IN (SELECT id FROM later) AND status IN ('PENDING', 'RUNNING')
 AND stop_requested_at IS NULL
RETURNING id
"""  # noqa: S608


def start_again(cursor: Cursor, record: TaskRunRecord, error: JobError, max_restarts: int) -> int | None:
    """Insert the lab that takes the place of the record's, with its create, and return its id; or None.

    The create is in the outbox then. None: it was started again often enough, its time is over, or nobody
    knows what was asked for.
    """
    lab = record.lab_instance_id
    try:
        return None if lab is None else _start_again(cursor, lab, record, error, max_restarts)
    except _NotRestarted as why:
        extra = {"action": "not_started_again", "lab_instance_id": lab}
        logger.info("lab %d is not started again: %s", lab, why, extra=extra)
        return None


def stop_in_its_place(cursor: Cursor, lab_instance_id: int, asked_at: datetime) -> None:
    """Ask for the stop of what was started in place of a lab that was lost after its own stop was asked for.

    Their deletes are in the outbox then, which its sweep publishes.
    """
    cursor.execute(_STOP, (lab_instance_id, asked_at))
    for (later,) in cursor.fetchall():
        outbox.add_with_cursor(cursor, tasks.DeleteLabPod(lab_instance_id=later))
        extra = {"action": "stopped_in_its_place", "lab_instance_id": later}
        logger.info("lab %d, in place of lab %d, is stopped as well", later, lab_instance_id, extra=extra)


class _NotRestarted(Exception):
    """Raised with the reason why a lab is not started again."""


def _start_again(cursor: Cursor, lab: int, record: TaskRunRecord, error: JobError, max_restarts: int) -> int:
    cursor.execute(_CHAIN, (lab, max_restarts))
    ((length,),) = cursor.fetchall()
    if length >= max_restarts:
        raise _NotRestarted(f"{length} in a row were already")
    request = last_request(cursor, lab)
    if request is None:
        raise _NotRestarted("the ledger does not say what was asked for")
    try:
        payload = tasks.CreateLabPod(**{**request, "lab_instance_id": lab})
    except (InvalidTask, TypeError) as exc:
        raise _NotRestarted(f"what was asked for is not valid: {exc}") from exc
    task_id = new_task_id()
    cursor.execute(_INSERT, (task_id, lab))
    row = cursor.fetchone()
    if row is None:
        raise _NotRestarted("its time is over")
    new = int(row[0])
    outbox.add_with_cursor(cursor, TaskRequest(replace(payload, lab_instance_id=new), task_id=task_id))
    sentence = f"It was started again as lab {new}."
    cursor.execute(_SAY, (f" {sentence}", lab))
    news = NewNotification(
        event_type=EventType.RESTARTED,
        cause="restarted",
        audience=Audience.STUDENT,
        message=f"This lab was lost through no fault of yours. {sentence}",
        task_id=record.task_id,
        lab_instance_id=lab,
        facts={"because": error.failure.cause, "started_again_as": new},
    )
    add_notification(cursor, news)
    return new
