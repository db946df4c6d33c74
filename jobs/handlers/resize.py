"""Give a RUNNING lab other limits without a restart (celery_workers.scale_lab_resources).

Whatever comes of it, the lab stays RUNNING. A JobError leaves the change noted at the Pod
(jobs.cluster.resize_pod): another attempt goes on with it, and FailedResize takes it back when there is none.
"""

from __future__ import annotations

import logging
import time
from functools import partial

from dispatcher.failure_contract import Audience
from dispatcher.quantities import parse_quantity
from dispatcher.tasks import ScaleLabResources, payload_kwargs
from jobs.cluster.lab_objects import LabGone
from jobs.cluster.pod_resources import Progress, Resources
from jobs.cluster.resize_pod import PodResize, Superseded
from jobs.config import naming
from jobs.config.lab_settings import LabSettings
from jobs.database.lab_rows import LabState
from jobs.database.ledger import Ending, has_succeeded
from jobs.errors import FailureRow, JobError, PermanentError, TransientError
from jobs.failures import NO_REQUEST, Failure
from jobs.handlers.context import TaskContext
from jobs.handlers.failed_task import FailedTask, FailureOutcome
from jobs.steps import mark, reached

logger = logging.getLogger(__name__)

#: Seconds for which the node is waited for when a change is undone.
UNDO_S = 30.0
#: Failure by which the API server refuses a change -> the same for a lab that runs.
_REFUSALS: dict[FailureRow, Failure] = {
    Failure.QUOTA_EXCEEDED: Failure.RESIZE_OVER_QUOTA,
    Failure.CLUSTER_REFUSES_LAB: Failure.RESIZE_REFUSED,
}
_ENDS = {
    Progress.INFEASIBLE: Failure.RESIZE_INFEASIBLE,
    Progress.DEFERRED: Failure.RESIZE_DEFERRED,
    Progress.BELOW_USE: Failure.RESIZE_BELOW_USE,
    Progress.FAILING: Failure.RESIZE_STUCK,
    Progress.UNDER_WAY: Failure.RESIZE_STUCK,
}


def scale_lab(context: TaskContext, payload: ScaleLabResources) -> None:
    """Change the limits of a lab that is RUNNING and not to be stopped; there is nothing to do for others."""
    lab = context.need_lab(payload.lab_instance_id)
    if lab.should_start:
        raise Failure.LAB_NOT_STARTED.error(lab_instance_id=payload.lab_instance_id)
    if has_succeeded(context.labs, context.record.task_id):
        _end_without(context, payload, lab, "it was done before")
        return
    if not lab.runs:
        _end_without(context, payload, lab, "it does not run")
        return
    settings = context.configs.lab_settings()
    settings.check_most(lab.lab_id, payload.new_resources)
    try:
        resize = _find_pod(context, payload.lab_instance_id, lab)
        _change(context, payload, settings, resize)
    except (LabGone, _NotRunning):
        now = context.find_lab(payload.lab_instance_id)
        if now is not None and now.runs:
            evidence = f"Pod {now.k8s_pod_name} while its resources changed"
            raise Failure.POD_GONE.error(evidence=evidence) from None
        _end_without(context, payload, now, "it was stopped")
    except Superseded:
        _end_without(context, payload, lab, "another change took its place")


class FailedResize(FailedTask):
    """A change of resources that failed: what the task changed is taken back first."""

    what_next = "The lab goes on as it was"

    def leaves_dead_letter(self, failure: FailureRow) -> bool:
        # Nothing is wrong but what was asked for; whoever waits for the task reads that.
        return failure.audience is not Audience.TEACHER

    def record(self, outcome: FailureOutcome) -> int:
        if outcome.error.failure not in NO_REQUEST:
            try:
                self._undo()
            except PermanentError as exc:
                extra = exc.log_fields("resize_left")
                logger.error("whether a change is left is not known: %s", exc.sentence, extra=extra)
                self.context.record.details["undone"] = {"confirmed": False, "evidence": exc.evidence}
        return super().record(outcome)

    def _undo(self) -> None:
        """Take back what the task changed, if it changed anything.

        Raises JobError when that is not known to be asked for; TransientError: it has to be tried again.
        """
        context, lab_instance_id = self.context, self.lab_instance_id
        lab = context.find_lab(lab_instance_id)
        if lab is None or not lab.runs:
            return
        began = time.monotonic()
        try:
            resize = _find_pod(context, lab_instance_id, lab)
            if not resize.is_noted:
                return
            confirmed = resize.undo(timeout_s=UNDO_S)
        except (LabGone, Superseded):
            return
        took_s = round(time.monotonic() - began, 3)
        context.record.details["undone"] = {"confirmed": confirmed, "seconds": took_s}
        mark(context.record, "undone")


def _change(
    context: TaskContext, payload: ScaleLabResources, settings: LabSettings, resize: PodResize
) -> None:
    def make_wanted(before: Resources, qos: str) -> Resources:
        return wanted_resources(before, payload.new_resources, settings, qos)

    check_wanted = partial(_check_wanted, context, payload.lab_instance_id)
    timeout_s = settings.resize_timeout_s
    before, wanted = resize.begin(make_wanted, patience_s=timeout_s, meanwhile=check_wanted)
    # All of it: a lab that is started again in place of this one gets what the last request says.
    context.record.details["request"] = payload_kwargs(payload) | {"new_resources": wanted.limits}
    began = time.monotonic()
    outcome = "noop"
    if not before.equals(wanted):
        mark(context.record, "noted")
        check_wanted()
        outcome = "succeeded"
        values = {"asked": Resources(payload.new_resources, {}), "kept": before}
        _ask(resize, wanted, values)
        mark(context.record, "asked")
        seen = resize.wait(timeout_s=timeout_s, meanwhile=check_wanted)
        if failure := _ENDS.get(seen.progress):
            raise failure.error(evidence=seen.evidence, **values)
        mark(context.record, "in force")
        resize.forget()
    elif resize.is_noted:
        # An attempt of ours, or one that this one took over, wanted what there is.
        outcome = "succeeded"
        _ask(resize, wanted, values={"asked": wanted, "kept": before})
        resize.undo(timeout_s=UNDO_S)
    took_s = round(time.monotonic() - began, 3)
    result = {"lab_instance_id": payload.lab_instance_id, "status": "RUNNING", "seconds": took_s}
    result |= {"before": before.limits, "after": wanted.limits, "restarts": resize.restarts}
    reached("committing")
    context.labs.record(context.record, Ending(outcome, result=result))
    extra = {"action": "lab_resized" if outcome == "succeeded" else "resize_noop", "seconds": took_s}
    logger.info("lab has %s", wanted, extra=extra)


def _ask(resize: PodResize, wanted: Resources, values: dict[str, Resources]) -> None:
    try:
        resize.ask(wanted)
    except JobError as exc:
        failure = _REFUSALS.get(exc.failure)
        if failure is None:
            raise
        if failure.retry:
            # Until the next attempt somebody else may want to change the lab.
            resize.undo(timeout_s=UNDO_S)
        raise failure.error(evidence=exc.evidence, **values) from exc


def wanted_resources(before: Resources, new: dict[str, str], settings: LabSettings, qos: str) -> Resources:
    """Return what a lab is to have: requests as at a create, in the QoS class that its Pod has for life."""
    limits = before.limits | new
    if qos == "Guaranteed":
        return Resources(limits, dict(limits))
    requests = before.requests | settings.requests_for(new)
    wanted = Resources(limits, requests)
    if qos == "Burstable" and wanted.equals(Resources(limits, limits)):
        less = f"{int(parse_quantity(limits['cpu']) * 1000) - 1}m"
        return Resources(limits, requests | {"cpu": less})
    return wanted


class _NotRunning(Exception):
    """Raised when the lab was stopped while it was waited for."""


def _find_pod(context: TaskContext, lab_instance_id: int, lab: LabState) -> PodResize:
    pod = context.lab_objects.find_pod(lab.k8s_pod_name) if lab.k8s_pod_name else None
    if pod is None:
        raise LabGone
    if not naming.belongs_to_lab(pod, lab_instance_id):
        raise Failure.NAME_TAKEN.error(
            evidence=f"Pod {lab.k8s_pod_name} is not managed by {naming.MANAGED_BY}"
        )
    if naming.is_anothers(naming.object_label_of(pod), lab.object_label):
        raise Failure.NAME_TAKEN.error(evidence=f"Pod {lab.k8s_pod_name} is of another lab with the same id")
    return PodResize(context.lab_objects, lab_instance_id, pod, context.record.task_id)


def _check_wanted(context: TaskContext, lab_instance_id: int) -> None:
    """Raise when the lab is to be stopped, or the change was cancelled."""
    try:
        lab = context.find_lab(lab_instance_id)
    except TransientError as exc:
        extra = {"action": "not_asked", "evidence": exc.evidence}
        logger.warning("whether the change is still wanted is not known", extra=extra)
        return
    if lab is None or not lab.runs:
        raise _NotRunning
    if lab.cancelled:
        raise Failure.CANCELLED.error(evidence="cancelled while the resources changed")


def _end_without(context: TaskContext, payload: ScaleLabResources, lab: LabState | None, why: str) -> None:
    result = {"lab_instance_id": payload.lab_instance_id, "status": lab.status if lab else None, "why": why}
    context.labs.record(context.record, Ending("noop", result=result))
    logger.info("resources are not changed: %s", why, extra={"action": "resize_noop"})
