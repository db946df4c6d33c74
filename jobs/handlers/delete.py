"""Stop a lab and delete its objects (celery_workers.delete_lab_pod); absent is success."""

from __future__ import annotations

import logging

from dispatcher.lab_time import overdue_task_id
from dispatcher.tasks import DeleteLabPod
from jobs.database.ledger import Ending
from jobs.failures import REVOKED, Failure
from jobs.handlers.context import TaskContext
from jobs.handlers.failed_task import FailedTask, FailureOutcome
from jobs.steps import mark, reached

logger = logging.getLogger(__name__)


def delete_lab(context: TaskContext, payload: DeleteLabPod) -> None:
    """Stop the lab: tombstone before the deletion, so that no create that is under way can win."""
    lab_instance_id = payload.lab_instance_id
    _check_pod_name(context, payload)
    # The row of a lab that never became usable goes on saying so; only its objects are to go.
    failed = context.record.task_id == overdue_task_id(lab_instance_id)
    lab = (
        context.labs.find(lab_instance_id)
        if failed
        else context.labs.request_stop(lab_instance_id, asked_at=context.record.published_at)
    )
    if lab is None:
        logger.warning("no such lab in the database", extra={"action": "delete_unknown_lab"})
    mark(context.record, "stop_requested")
    grace_s = 0 if payload.force else None
    deleted = context.lab_objects.delete_lab(
        lab_instance_id, grace_s=grace_s, object_label=lab.object_label if lab else None
    )
    context.lab_objects.wait_gone(deleted)
    mark(context.record, "gone")
    reached("committing")
    if failed and lab and lab.status == "FAILED":
        result = {"lab_instance_id": lab_instance_id, "status": lab.status}
        context.labs.record(context.record, Ending("succeeded" if deleted else "noop", result=result))
        logger.info("what was left is gone", extra={"action": "remains_gone", "objects": len(deleted)})
    elif context.labs.mark_stopped(context.record, lab_instance_id, deleted=len(deleted)):
        mark(context.record, "stopped")
        logger.info("lab is STOPPED", extra={"action": "lab_stopped", "objects": len(deleted)})
    else:
        logger.info("nothing to delete", extra={"action": "delete_noop"})


class FailedDelete(FailedTask):
    """A delete that failed: the lab goes on until its stop is asked for again."""

    what_next = "The stop is asked for again"

    def record(self, outcome: FailureOutcome) -> int:
        context, failure = self.context, outcome.error.failure
        if failure in REVOKED:
            return super().record(outcome)
        if failure is Failure.CONTAINER_CRASHED:
            # Its containers may have died before they wrote that; the cleanup asks again.
            context.labs.request_stop(self.lab_instance_id)
        context.labs.record_failed_stop(context.record, outcome.error)
        context.notify(context.record.notification_id)
        return 0


def _check_pod_name(context: TaskContext, payload: DeleteLabPod) -> None:
    """Say where a task names another Pod than the lab's: labels alone tell what is deleted."""
    named, own_prefix = payload.k8s_pod_name, f"lab-instance-{payload.lab_instance_id}-"
    if named is None or named.startswith(own_prefix):
        return
    problem = f"{named} is no name of this lab's Pod, which begins with {own_prefix}"
    context.record.details.setdefault("passed_over", {})["k8s_pod_name"] = problem
    logger.warning("lab is stopped by its id: %s", problem, extra={"action": "passed_over"})
