"""Give labs up: a create that failed for good, and labs that the health check or a repair found lost.

The row first, then the objects: an object that is not deleted is an orphan, which the next sync finds, while
a lab whose objects are gone and whose row still says RUNNING would tell its student nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from dispatcher import tasks
from dispatcher.errors import InvalidTask
from dispatcher.message.envelope import TaskMessage
from jobs.cluster import evidence
from jobs.cluster.lab_objects import LabObjects
from jobs.cluster.pod_facts import summary
from jobs.config.naming import LabIdentity, lab_object_name
from jobs.database.lab_rows import LabState
from jobs.database.lab_store import LabStore
from jobs.database.ledger import TaskRunRecord, find_dead_letter
from jobs.errors import FailureRow, JobError
from jobs.failures import NO_REQUEST, Failure, as_recorded
from jobs.handlers.failed_task import FailedTask, FailureOutcome

if TYPE_CHECKING:
    from jobs.database.snapshot_rows import LabRow
    from jobs.handlers.context import TaskContext

logger = logging.getLogger(__name__)

#: Failures that no Pod has a part in.
_NO_POD = {*NO_REQUEST, Failure.CANCELLED, Failure.EXPIRED, Failure.LAB_UNKNOWN}
#: Failures after which somebody has to look at the message itself.
_ABOUT_MESSAGE = {Failure.REQUEST_INVALID, Failure.FOLLOW_UP_UNSUPPORTED, Failure.INTERNAL_ERROR}


class FailedCreate(FailedTask):
    """A create that failed: its lab becomes FAILED, or STOPPED if the create was cancelled."""

    _sight = evidence.Evidence({})
    #: True: this run made the lab FAILED or STOPPED, so that all its objects are to go.
    _is_ours = False

    def recorded_dead_letter(self) -> JobError | None:
        # The lab is FAILED since, so that this run finds nothing to do.
        found = find_dead_letter(self.context.labs, self.task.id, self.context.record.attempt)
        return as_recorded(*found) if found else None

    def look(self, error: JobError, level: int) -> None:
        if error.failure in _NO_POD:
            return
        context, began = self.context, time.monotonic()
        self._sight = evidence.collect(
            lambda: context.cluster,
            context.settings.namespace,
            self.lab_instance_id,
            pod_name=_pod_name(self.task),
            object_label=context.object_label,
        )
        seen = context.record.details["seen"] = self._sight.seen
        took_s = round(time.monotonic() - began, 3)
        extra = {"action": "evidence", "cause": error.failure.cause, "took_s": took_s}
        logger.log(level, "seen of the lab: %s", summary(seen), extra=extra)

    def on_failure(self, error: JobError) -> FailureOutcome:
        self.look(error, logging.ERROR)
        outcome = super().on_failure(error)
        if self._sight.pod is None or not (keep_s := self._read_keep_s()):
            return outcome
        self.context.record.details["objects_kept_s"] = keep_s
        return replace(outcome, keep_objects_s=keep_s)

    def leaves_dead_letter(self, failure: FailureRow) -> bool:
        # Otherwise the lab says why it failed. What is given up after several attempts can be requeued.
        return failure.retry or failure in _ABOUT_MESSAGE

    def record(self, outcome: FailureOutcome) -> int:
        context, error = self.context, outcome.error
        if error.failure is Failure.CANCELLED:
            sentence = "The start of this lab was cancelled."
            self._is_ours = context.labs.mark_cancelled(context.record, sentence)
            return 0
        self._is_ours = context.labs.mark_failed(context.record, error, outcome=outcome.ending.outcome)
        if not self._is_ours:
            return 0
        context.notify(context.record.notification_id)
        if context.record.notification_id is not None:
            self._post_event(error)
        return outcome.keep_objects_s

    def clean_up(self, outcome: FailureOutcome) -> None:
        # A request that is not valid has made nothing, and a pile of them must not keep the cluster busy.
        if outcome.error.failure in NO_REQUEST:
            return
        # A create that a crashed container left may not have looked its lab up.
        if self._is_ours and self.context.object_label is None:
            self.context.find_lab(self.lab_instance_id)
        lab = None if self._is_ours else self.context.labs.find(self.lab_instance_id)
        if self._is_ours or lab is not None:
            take_down(self.context, self.lab_instance_id, lab)

    def _post_event(self, error: JobError) -> None:
        pod = self._sight.pod
        name = pod["metadata"]["name"] if pod else _pod_name(self.task)
        # A cluster that did not answer is not waited for twice.
        if name is None or not self._sight.answered:
            return
        event = evidence.make_event(
            error,
            namespace=self.context.settings.namespace,
            pod_name=name,
            pod_uid=pod["metadata"]["uid"] if pod else None,
        )
        evidence.post_event(self.context.cluster, event)

    def _read_keep_s(self) -> int:
        try:
            return self.context.configs.lab_settings().keep_failed_pods_s
        except JobError as exc:
            logger.warning("the lab's objects are not kept: %s", exc, extra={"action": "not_kept"})
            return 0


def _pod_name(task: TaskMessage) -> str | None:
    try:
        payload = tasks.parse_payload(task.name, task.args, task.kwargs)
    except InvalidTask:
        return None
    if not isinstance(payload, tasks.CreateLabPod):
        return None
    return lab_object_name(payload.lab_instance_id, payload.docker_image)


def take_down(context: TaskContext, lab_instance_id: int, lab: LabState | None) -> None:
    """Take a lab's objects down, but those with which another create, of another image, won or goes on.

    `lab` is the row as it is, None for one that nobody starts any more. Raises JobError.
    """
    if lab is None or lab.status != "RUNNING" or lab.objects_to_keep is not None:
        keep, label = (lab.objects_to_keep, lab.object_label) if lab else (None, context.object_label)
        context.lab_objects.delete_lab(lab_instance_id, grace_s=0, keep=keep, object_label=label)


@dataclass(kw_only=True)
class LostLabs:
    """Labs that are not what their rows say: `fail` makes a row FAILED, the end of the block deletes objects.

    It deletes those of all labs together, as each list makes the API server look at the whole namespace.
    """

    labs: LabStore
    objects: LabObjects
    #: When the rows were read.
    as_of: datetime
    #: Cause -> how many labs in a row are started again.
    restarts: Mapping[str, int]
    failed: list[LabIdentity] = field(default_factory=list)
    #: How many objects' deletion has begun.
    deleted: int = 0
    #: Why there may be others, or None.
    left: str | None = None

    def fail(self, record: TaskRunRecord, error: JobError, row: LabRow) -> bool:
        """Make a lab FAILED, and start another in its place if its cause is to be restarted.

        False: something happened to it since its row was read. Raises JobError when the database does not
        take it.
        """
        changed = self.labs.mark_lost(
            record,
            error,
            status=row.status,
            pod_name=row.k8s_pod_name,
            as_of=self.as_of,
            max_restarts=self.restarts.get(error.failure.cause, 0),
        )
        if changed:
            self.failed.append(row.whose)
        return changed

    def __enter__(self) -> LostLabs:
        return self

    def __exit__(self, *_error: object) -> None:
        try:
            self.deleted = self.objects.delete_labs(self.failed)
        except JobError as exc:
            self.left = exc.evidence or str(exc)
            extra = {"action": "objects_left", "labs": [whose.lab_instance_id for whose in self.failed]}
            logger.warning("objects of FAILED labs are left: %s", self.left, extra=extra)
