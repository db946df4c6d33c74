"""End the labs whose time is over, and those that never became usable (celery_workers.cleanup_timeout_labs).

A lab's tombstone and its delete are committed together, the delete in the outbox: a crash leaves neither or
both, and two cleanups, or a cleanup and whoever extends or stops the lab, meet at its row. The outbox is
relayed right after; what it keeps, because the broker is away, its sweep publishes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from dispatcher import outbox, tasks
from dispatcher.broker.topology import QUEUE_HIGH
from dispatcher.errors import InvalidTask
from dispatcher.failure_contract import EventType
from dispatcher.lab_time import cleanup_task_id, overdue_task_id
from dispatcher.message.request import TaskRequest
from jobs.checks.run import relay, tell_refused
from jobs.config.lifetimes import LifeSettings
from jobs.database.connection import Cursor
from jobs.database.due_rows import (
    DueLab,
    Reason,
    count_live,
    count_waiting,
    fail_labs,
    find_due,
    lock_due,
    stop_labs,
)
from jobs.database.ledger import forget_old_rows
from jobs.database.notifications import add_failure
from jobs.failures import Failure
from jobs.handlers.context import TaskContext
from jobs.steps import reached
from jobs.verify.queues import BrokerAway, Queues
from jobs.verify.safety_limits import Refusal, container_clock_differs, unannounced_ends

logger = logging.getLogger(__name__)

#: Labs per transaction: their rows are locked until it is committed.
BATCH = 100


def run(context: TaskContext, payload: tasks.CleanupTimeoutLabs) -> dict[str, Any]:
    """End every lab whose time is over. Raises JobError, also when that is refused."""
    labs, settings = context.labs, context.configs.life_settings()
    live, due = count_live(labs), _without_unread(context, [*find_due(labs, settings)])
    unannounced = sum(lab.unannounced for lab in due)
    refusal = container_clock_differs(labs, settings) or unannounced_ends(
        due=len(due), unannounced=unannounced, live=live, settings=settings
    )
    if payload.dry_run:
        return _show(due, refusal, force=payload.force)
    if refusal and not payload.force:
        _tell(context, refusal)
        raise refusal.error()
    if refusal:
        extra = {"action": "cleanup_forced", **refusal.facts}
        logger.warning("the cleanup goes on by force, although %s", refusal.sentence, extra=extra)
    ended: Counter[str] = Counter()
    task_ids: list[str] = []
    for start in range(0, len(due), BATCH):
        ids = [lab.id for lab in due[start : start + BATCH]]
        done = labs.transaction(lambda cursor, ids=ids: _end_batch(cursor, settings, ids))  # type: ignore[misc]
        task_ids += done.values()
        ended.update(reason.value for _, reason in done)
    reached("relaying")
    waiting = _relay(context, task_ids) if task_ids else 0
    forget_old_rows(labs, settings.keep_periodic_runs_days)
    result = {"deletes_published": len(task_ids) - waiting, **ended}
    return result | ({"deletes_waiting": waiting} if waiting else {})


def _show(due: Sequence[DueLab], refusal: Refusal | None, *, force: bool) -> dict[str, Any]:
    for lab in due:
        extra = {"action": "would_delete", "lab_instance_id": lab.id, "pod": lab.k8s_pod_name}
        extra |= {"reason": lab.reason.value, "announced": lab.announced}
        logger.info("lab %d would be ended: %s", lab.id, lab.reason.value, extra=extra)
    if refusal:
        says = "would go on by force, although" if force else "would be refused, because"
        logger.warning("the cleanup %s %s", says, refusal.sentence, extra={"action": "would_refuse"})
    found = {"would_delete": len(due), **Counter(lab.reason.value for lab in due)}
    return found | ({"would_refuse": refusal.failure.cause} if refusal and not force else {})


def _tell(context: TaskContext, refusal: Refusal) -> None:
    """Tell the administrator, at most once an hour."""
    message = f"The cleanup ended no lab, because {refusal.sentence}. If it is right: --force."
    now, event = datetime.now(timezone.utc), EventType.CLEANUP_REFUSED
    tell_refused(context, refusal, event, message, at=now, failure=refusal.failure)
    extra = {"action": "cleanup_refused", **refusal.facts}
    logger.error("no lab was ended, because %s; --force overrides it", refusal.sentence, extra=extra)


def _without_unread(context: TaskContext, due: list[DueLab]) -> list[DueLab]:
    """Leave out labs whose request may wait on the broker, where nobody can read whose a message is.

    What the outbox holds, it says itself. A create with an eta that is published waits on the delay ladder
    for longer than any limit: while messages wait there of which the ledger does not know, a lab that no
    container has met yet is spared until its own expires_at, after which it would be stopped as soon as it
    was started. And while deletes wait in their queue, another one would put containers further behind.
    """
    ahead = [lab for lab in due if not lab.certainly_started]
    if ahead and _creates_wait(context):
        extra = {"action": "overdue_spared", "labs": len(ahead)}
        logger.info("%d PENDING labs may be asked for ahead, and are left alone", len(ahead), extra=extra)
        due = [lab for lab in due if lab.certainly_started]
    repeated = [lab for lab in due if lab.reason is Reason.STOP_REPEATED]
    if repeated and _deletes_wait(context):
        extra = {"action": "stops_wait", "labs": len(repeated)}
        logger.info(
            "deletes wait, so the stops of %d labs are not asked for again", len(repeated), extra=extra
        )
        due = [lab for lab in due if lab.reason is not Reason.STOP_REPEATED]
    return due


def _creates_wait(context: TaskContext) -> bool:
    try:
        with closing(Queues(context.settings.broker)) as queues:
            delayed, known = queues.count_delayed(context.labs)
            return delayed > known
    except BrokerAway as exc:
        logger.warning("the delay ladder cannot be looked at: %s", exc, extra={"action": "ladder_unknown"})
        return True


def _deletes_wait(context: TaskContext) -> bool:
    try:
        with closing(Queues(context.settings.broker)) as queues:
            return queues.least_waiting()[QUEUE_HIGH] > 0
    except BrokerAway as exc:
        logger.warning("the queue of deletes cannot be looked at: %s", exc, extra={"action": "queue_unknown"})
        return True


def _end_batch(cursor: Cursor, settings: LifeSettings, ids: list[int]) -> dict[tuple[int, Reason], str]:
    """End what is still due of these labs; return the id of each one's delete."""
    deletes = [(lab, delete) for lab in lock_due(cursor, settings, ids) if (delete := _delete(lab))]
    if overdue := [lab.id for lab, _ in deletes if lab.reason is Reason.OVERDUE]:
        error = Failure.NEVER_STARTED.error(minutes=settings.pending_limit_minutes)
        for failed, task_id in fail_labs(cursor, overdue, error):
            add_failure(cursor, error, task_id=task_id, lab_instance_id=failed)
    stop_labs(cursor, [lab.id for lab, _ in deletes if lab.reason is not Reason.OVERDUE])
    # A task of this id that still waits is the same one.
    outbox.add_missing_with_cursor(cursor, [delete for _, delete in deletes])
    ended = {(lab.id, lab.reason): str(delete.task_id) for lab, delete in deletes}
    for (lab_id, reason), task_id in ended.items():
        extra = {"action": f"lab_{reason.value}", "lab_instance_id": lab_id, "delete_task_id": task_id}
        logger.info("lab %d is to end: %s", lab_id, reason.value, extra=extra)
    return ended


def _delete(lab: DueLab) -> TaskRequest | None:
    """Return the delete of a lab, or None for one that no task can name."""
    extra = {"action": "odd_row", "lab_instance_id": lab.id}
    try:
        delete = tasks.DeleteLabPod(lab_instance_id=lab.id, force=True)
    except InvalidTask as exc:
        logger.error("lab %d cannot be ended: %s", lab.id, exc, extra=extra)
        return None
    try:
        delete = replace(delete, k8s_pod_name=lab.k8s_pod_name)
    except InvalidTask as exc:
        # The lab's labels find its Pod as well, and one odd row must not keep all others running.
        logger.warning("pod name is left out: %s", exc, extra=extra)
    overdue = lab.reason is Reason.OVERDUE
    task_id = overdue_task_id(lab.id) if overdue else cleanup_task_id(lab.id, lab.stop_requested_at)
    return TaskRequest(delete, task_id=task_id)


def _relay(context: TaskContext, task_ids: list[str]) -> int:
    """Relay the outbox, and return how many of these deletes still wait in it.

    Raises JobError when the database does not answer.
    """
    report = relay(context)
    # Another relay may have them in its hands, or have published them.
    left = {*task_ids} - {*report.published}
    waiting = count_waiting(context.labs, [*left]) if left else 0
    if waiting:
        why = report.database_error or next(iter(report.failed.values()), "another relay publishes it")
        extra = {"action": "deletes_wait", "deletes": waiting}
        logger.warning("%d deletes are left to the sweep of the outbox: %s", waiting, why, extra=extra)
    return waiting
