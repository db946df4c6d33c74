"""What becomes of a task that failed: another attempt, a FAILED lab, the dead-letter queue.

The message may be acknowledged only when `settle_failure` says so: what it could not record, or not
publish, another container has to.
"""

from __future__ import annotations

import logging
import random
from dataclasses import replace
from typing import TYPE_CHECKING

from dispatcher import tasks
from dispatcher.errors import PublishError
from dispatcher.failure_contract import COME_BACK_S, Audience
from dispatcher.message import TaskMessage, next_attempt
from dispatcher.publisher import Publisher
from jobs.consumer import Delivery
from jobs.context import TaskContext
from jobs.create_lab import NO_REQUEST, cancel_create, fail_create
from jobs.errors import JobError, PermanentError, TransientError
from jobs.failures import Failure, as_recorded, given_up
from jobs.ledger import Ending, TaskRunRecord
from jobs.settings import JobSettings
from jobs.settlement import publish_dead_letter, publish_delayed, retry_delay_s

if TYPE_CHECKING:
    from jobs.failed_lab import FailedLab

logger = logging.getLogger(__name__)

#: Not performed, though nothing is wrong with it.
_REVOKED = {Failure.CANCELLED, Failure.EXPIRED}
#: What even a create leaves in the dead-letter queue: somebody has to look at the message itself. One that
#: is given up after several attempts is kept as well, since it can be requeued.
_KEPT = {Failure.REQUEST_INVALID, Failure.FOLLOW_UP_UNSUPPORTED, Failure.INTERNAL_ERROR}


def settle_failure(context: TaskContext, delivery: Delivery, task: TaskMessage, error: JobError) -> bool:
    """Record the failure and what follows from it; False: give the message back."""
    try:
        # A task without a routing key cannot come back.
        comes_back = task.name in tasks.ROUTING_KEYS
        if context.only_objects_left and isinstance(error, TransientError):
            return _come_back(context, task, error)
        again = comes_back and task.retries < context.settings.retry.max_retries
        again = again and isinstance(error, TransientError)
        lab = _failed_lab(context, task)
        if lab:
            lab.look(error, final=not again)
        if isinstance(error, TransientError):
            if again:
                return _retry(context, task, error)
            error = given_up(
                error,
                task.retries + 1,
                stop=task.name == tasks.DELETE_LAB_POD,
                resize=task.name == tasks.SCALE_LAB_RESOURCES,
            )
        keep = _is_kept(delivery, task, error.failure)
        try:
            _record_failure(context, task, error, lab, keep=keep)
        except JobError as unsettled:
            recorded = context.record.ending is not None
            if isinstance(unsettled, TransientError) and comes_back:
                # Once it is recorded only objects are left to do, which the next run keeps nothing of.
                kept = not (recorded and keep) or _keep(context, delivery, task, error)
                return kept and _come_back(context, task, unsettled)
            extra = {"action": "ledger_missed", "cause": unsettled.failure.cause}
            logger.error("failure is not recorded, or its objects are left: %s", unsettled, extra=extra)
            context.record.ending = Ending.of_error("dead_lettered", error)
            keep = True
        _log_end(error)
    except PublishError as exc:
        logger.error("retry was not confirmed: %s", exc, extra={"action": "given_back"})
        return False
    return not keep or _keep(context, delivery, task, error)


def _failed_lab(context: TaskContext, task: TaskMessage) -> FailedLab | None:
    lab_instance_id = context.record.lab_instance_id
    if task.name != tasks.CREATE_LAB_POD or lab_instance_id is None:
        return None
    from jobs.failed_lab import FailedLab

    return FailedLab(context, task, lab_instance_id)


def _is_kept(delivery: Delivery, task: TaskMessage, failure: Failure) -> bool:
    if failure in _REVOKED:
        return False
    if failure is Failure.CONTAINER_CRASHED:
        # A copy that the broker made is there already; one that only counts as worn out is not.
        return "x-last-death-reason" not in (delivery.properties.headers or {})
    if task.name == tasks.SCALE_LAB_RESOURCES and failure.told is Audience.TEACHER:
        # Nothing is wrong but what was asked for; whoever waits for the task reads that.
        return False
    # A create has its lab to say why it failed; for everything else the dead-letter queue says it.
    return task.name != tasks.CREATE_LAB_POD or failure.retry or failure in _KEPT


def _log_end(error: JobError) -> None:
    extra = {
        "action": "failed",
        "error_category": error.category.value,
        "cause": error.failure.cause,
        "evidence": error.evidence,
    }
    if error.failure in _REVOKED:
        logger.info("task is not performed: %s", error.sentence, extra={**extra, "action": "revoked"})
        return
    logger.error("task failed: %s", error.sentence, extra=extra)


def _record_failure(
    context: TaskContext, task: TaskMessage, error: JobError, lab: FailedLab | None, *, keep: bool
) -> None:
    if task.name == tasks.SCALE_LAB_RESOURCES and error.failure not in NO_REQUEST:
        _undo_resize(context)
    if error.failure is Failure.CANCELLED:
        if lab:
            cancel_create(context, lab.lab_instance_id)
        else:
            # Nobody has to act, so there is no category.
            ending = Ending("revoked", error_message=error.sentence, cause=error.failure.cause)
            context.labs.record(context.record, ending)
        return
    revoked = error.failure is Failure.EXPIRED
    outcome = "revoked" if revoked else "dead_lettered" if keep else "failed"
    if lab:
        fail_create(
            context,
            lab.lab_instance_id,
            error,
            outcome=outcome,
            when_failed=lambda: lab.when_failed(error),
        )
    else:
        lab_instance_id = context.record.lab_instance_id
        crashed = error.failure is Failure.CONTAINER_CRASHED
        if task.name != tasks.DELETE_LAB_POD or lab_instance_id is None or revoked:
            context.labs.record(context.record, Ending.of_error(outcome, error))
            return
        if crashed:
            # Its containers may have died before they wrote that; the cleanup asks again.
            context.labs.request_stop(lab_instance_id)
        context.labs.record_failed_stop(context.record, error)
        if context.record.notification_id is not None:
            context.notify(context.record.notification_id)


def _undo_resize(context: TaskContext) -> None:
    """Take back what the task changed. Raises TransientError: it has to be tried again."""
    from jobs.scale_lab import undo_resize

    try:
        undo_resize(context)
    except PermanentError as exc:
        extra = {"action": "resize_left", "cause": exc.failure.cause, "evidence": exc.evidence}
        logger.error("whether a change of resources is left is not known: %s", exc.sentence, extra=extra)
        context.record.details["undone"] = {"confirmed": False, "evidence": exc.evidence}


def _come_back(context: TaskContext, task: TaskMessage, why: TransientError) -> bool:
    """Publish a failed task again, as often as it takes: its lab must learn of the failure."""
    publish_delayed(context.publisher, replace(task, eta=None), random.uniform(0.5, 1.0) * COME_BACK_S)
    if context.record.ending is None:
        ending = Ending.of_error("retried", why)
        try:
            context.labs.record(context.record, ending)
        except JobError:  # most often it is the database that is away
            context.record.ending = ending
    extra = {"action": "comes_back", "cause": why.failure.cause, "evidence": why.evidence}
    logger.error("failure cannot be settled now, the task comes back: %s", why.sentence, extra=extra)
    return True


def _retry(context: TaskContext, task: TaskMessage, error: TransientError) -> bool:
    delay_s = retry_delay_s(context.settings.retry, task.retries)
    publish_delayed(context.publisher, next_attempt(task, error=str(error)), delay_s)
    extra = {
        "action": "retried",
        "delay_s": round(delay_s, 1),
        "error_category": error.category.value,
        "cause": error.failure.cause,
        "evidence": error.evidence,
    }
    logger.warning("task is tried again later: %s", error.sentence, extra=extra)
    context.record.details["retry_delay_s"] = round(delay_s, 1)
    ending = Ending.of_error("retried", error)
    try:
        context.labs.record(context.record, ending)
    except JobError as exc:
        context.record.ending = ending
        logger.warning("retry is not in the ledger: %s", exc, extra={"action": "ledger_missed"})
    return True


def keep_again(context: TaskContext, delivery: Delivery, task: TaskMessage) -> bool:
    """Dead-letter a create whose container died between recording that and doing it; False: not confirmed.

    Of another task nothing is done: it fails again. A second dead letter, if the first was published,
    does no harm.
    """
    if task.name != tasks.CREATE_LAB_POD:
        return True
    found = context.labs.find_dead_letter(task.id, context.record.attempt)
    if found is None:
        return True
    try:
        error = as_recorded(*found)
    except KeyError:
        error = Failure.INTERNAL_ERROR.error(evidence=" ".join(found))
    return _keep(context, delivery, task, error)


def _keep(context: TaskContext, delivery: Delivery, task: TaskMessage, error: JobError) -> bool:
    return dead_letter(context.publisher, context.settings, delivery, context.record, task, error)


def dead_letter(
    publisher: Publisher,
    settings: JobSettings,
    delivery: Delivery,
    record: TaskRunRecord,
    task: TaskMessage,
    error: JobError,
) -> bool:
    """Put the message into the dead-letter queue with its story; False: the broker did not confirm it."""
    try:
        publish_dead_letter(publisher, settings, delivery, record=record, task=task, error=error)
    except PublishError as exc:
        logger.error("dead letter was not confirmed: %s", exc, extra={"action": "given_back"})
        return False
    extra = {
        "action": "dead_lettered",
        "error_category": error.category.value,
        "cause": error.failure.cause,
    }
    logger.error("message is in the dead-letter queue: %s", error, extra=extra)
    return True
