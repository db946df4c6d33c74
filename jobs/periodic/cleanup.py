"""celery_workers.cleanup_timeout_labs: ask for the deletion of labs whose time is over, or whose stop failed.

The delete is published before the tombstone is committed: a crash in between publishes it again under
the same task id, which is harmless; the other order could lose it. Old cancellations go as well.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dispatcher import message, tasks
from dispatcher.errors import InvalidTask
from dispatcher.expiry import STOP_PATIENCE_MINUTES, cleanup_task_id
from dispatcher.ladder import MAX_DELAY_S
from dispatcher.publisher import Publisher
from jobs.context import TaskContext
from jobs.database import Cursor
from jobs.labs import LabStore

logger = logging.getLogger(__name__)

#: Labs per transaction: their rows are locked while the deletes are published.
BATCH = 10
_EXPIRED = f"""
SELECT id, k8s_pod_name, stop_requested_at FROM lab_instances WHERE
 (status = 'RUNNING' AND expires_at < now() AND stop_requested_at IS NULL)
 OR (status IN ('PENDING', 'RUNNING')
     AND stop_requested_at < now() - interval '{STOP_PATIENCE_MINUTES} minutes')
 ORDER BY expires_at LIMIT %s
"""  # noqa: S608  # a constant
_EXPIRED_LOCKED = _EXPIRED + " FOR UPDATE SKIP LOCKED"
#: Days after which nobody needs the cancellation of a task that is over.
KEEP_CANCELLATIONS_DAYS = 30
#: Rows per cleanup.
_FORGET = 1000
# A task that never came may still wait for its time, as long as the ladder lets it.
_FORGET_CANCELLATIONS = """
DELETE FROM task_cancellations WHERE task_id IN (
    SELECT task_id FROM task_cancellations AS cancelled
    WHERE requested_at < now() - make_interval(days => %s) AND (
        requested_at < now() - make_interval(secs => %s)
        OR EXISTS (SELECT FROM task_ledger WHERE task_ledger.task_id = cancelled.task_id
                   AND outcome NOT IN ('started', 'retried')))
    LIMIT %s)
"""


@dataclass(frozen=True, slots=True)
class ExpiredLab:
    """A RUNNING lab past its `expires_at`, or one whose stop was asked for long ago and not done."""

    id: int
    k8s_pod_name: str | None
    stop_requested_at: datetime | None


def run(context: TaskContext, payload: tasks.CleanupTimeoutLabs) -> dict[str, Any]:
    """Publish one delete for each lab whose time is over. Raises JobError, PublishError."""
    if payload.dry_run:
        found = find_expired(context.labs)
        for lab in found:
            extra = {"action": "would_delete", "lab_instance_id": lab.id, "pod": lab.k8s_pod_name}
            logger.info("lab %d is expired", lab.id, extra=extra)
        return {"would_delete": len(found)}
    return {"deletes_published": cleanup_expired(context.labs, context.publisher)}


def find_expired(labs: LabStore, *, limit: int = 10_000) -> list[ExpiredLab]:
    """Return the labs that a cleanup would delete now, the longest overdue first."""
    return labs.transaction(lambda cursor: _select(cursor, limit, lock=False))


def cleanup_expired(labs: LabStore, publisher: Publisher) -> int:
    """Publish one delete for each expired lab and return how many; two cleanups share the work."""
    total = 0
    while count := labs.transaction(lambda cursor: _clean_batch(cursor, publisher)):
        total += count
    labs.transaction(_forget_cancellations)
    return total


def _forget_cancellations(cursor: Cursor) -> None:
    cursor.execute(_FORGET_CANCELLATIONS, (KEEP_CANCELLATIONS_DAYS, MAX_DELAY_S, _FORGET))
    if cursor.rowcount:
        extra = {"action": "cancellations_forgotten", "count": cursor.rowcount}
        logger.info("cancellations of old tasks are forgotten", extra=extra)


def _clean_batch(cursor: Cursor, publisher: Publisher) -> int:
    expired = _select(cursor, BATCH, lock=True)
    for lab in expired:
        task_id = _publish_delete(publisher, lab)
        action = "stop_repeated" if lab.stop_requested_at else "lab_expired"
        extra = {"action": action, "lab_instance_id": lab.id, "delete_task_id": task_id}
        logger.info("delete published for lab %d", lab.id, extra=extra)
    cursor.execute(
        "UPDATE lab_instances SET stop_requested_at = now(), updated_at = now() WHERE id = ANY(%s)",
        ([lab.id for lab in expired],),
    )
    return len(expired)


def _select(cursor: Cursor, limit: int, *, lock: bool) -> list[ExpiredLab]:
    cursor.execute(_EXPIRED_LOCKED if lock else _EXPIRED, (limit,))
    return [ExpiredLab(*row) for row in cursor.fetchall()]


def _publish_delete(publisher: Publisher, lab: ExpiredLab) -> str:
    try:
        payload = tasks.DeleteLabPod(lab_instance_id=lab.id, k8s_pod_name=lab.k8s_pod_name, force=True)
    except InvalidTask as exc:
        # The lab's labels find its Pod as well, and one odd row must not keep all others running.
        logger.warning(
            "pod name is left out: %s", exc, extra={"action": "odd_row", "lab_instance_id": lab.id}
        )
        payload = tasks.DeleteLabPod(lab_instance_id=lab.id, force=True)
    task = message.TaskMessage(
        name=payload.task_name,
        id=cleanup_task_id(lab.id, lab.stop_requested_at),
        kwargs=tasks.payload_kwargs(payload),
    )
    publisher.publish_task(task)
    return task.id
