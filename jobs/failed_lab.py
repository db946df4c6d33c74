"""The lab of a create that failed: looked at, told of in the cluster, and kept for a while if wanted."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from dispatcher import tasks
from dispatcher.errors import InvalidTask
from dispatcher.message import TaskMessage
from jobs import evidence, lab_event
from jobs.create_lab import NO_REQUEST
from jobs.errors import JobError
from jobs.failures import Failure
from jobs.naming import lab_object_name
from jobs.pod_facts import summary
from jobs.settlement import publish_delayed

if TYPE_CHECKING:
    from jobs.cluster import Manifest
    from jobs.context import TaskContext

logger = logging.getLogger(__name__)

#: Failures that no Pod has a part in.
_NO_POD = {*NO_REQUEST, Failure.CANCELLED, Failure.EXPIRED, Failure.LAB_UNKNOWN}


class FailedLab:
    """The lab of one create that failed."""

    def __init__(self, context: TaskContext, task: TaskMessage, lab_instance_id: int) -> None:
        self._context = context
        self._task = task
        self.lab_instance_id = lab_instance_id
        self._pod: Manifest | None = None
        self._answered = False
        self._keep_s = 0

    def look(self, error: JobError, *, final: bool) -> None:
        """Put what is seen of the lab into the ledger's details, before anything is taken down."""
        if error.failure in _NO_POD:
            return
        context, started = self._context, time.monotonic()
        sight = evidence.collect(
            lambda: context.cluster,
            context.settings.namespace,
            self.lab_instance_id,
            pod_name=_pod_name(self._task),
        )
        self._pod, self._answered = sight.pod, sight.answered
        context.record.details["seen"] = sight.seen
        took_s = round(time.monotonic() - started, 3)
        extra = {"action": "evidence", "cause": error.failure.cause, "took_s": took_s}
        logger.log(
            logging.ERROR if final else logging.WARNING,
            "seen of the lab: %s",
            summary(sight.seen),
            extra=extra,
        )
        if final and self._pod is not None:
            self._keep_s = self._read_keep_s()
            if self._keep_s:
                context.record.details["objects_kept_s"] = self._keep_s

    def when_failed(self, error: JobError) -> bool:
        """Say in the cluster why the lab failed; False: its objects stay, and the task comes back for them.

        Raises PublishError: the message has to be given back, and whoever gets it takes them down.
        """
        context = self._context
        if context.record.notification_id is not None:
            context.notify(context.record.notification_id)
            self._post_event(error)
        if not self._keep_s:
            return True
        # The lab is FAILED when it comes back, so that nothing is left to do but to take the objects down.
        publish_delayed(context.publisher, replace(self._task, eta=None, expires=None), self._keep_s)
        extra = {"action": "objects_kept", "seconds": self._keep_s}
        logger.warning("the lab's objects stay for %d s", self._keep_s, extra=extra)
        return False

    def _post_event(self, error: JobError) -> None:
        name = self._pod["metadata"]["name"] if self._pod else _pod_name(self._task)
        # A cluster that did not answer is not waited for twice.
        if name is None or not self._answered:
            return
        event = lab_event.make_event(
            error,
            namespace=self._context.settings.namespace,
            pod_name=name,
            pod_uid=self._pod["metadata"]["uid"] if self._pod else None,
        )
        lab_event.post_event(self._context.cluster, event)

    def _read_keep_s(self) -> int:
        try:
            return self._context.configs.lab_settings().keep_failed_pods_s
        except JobError as exc:
            logger.warning("the lab's objects are not kept: %s", exc, extra={"action": "not_kept"})
            return 0


def _pod_name(task: TaskMessage) -> str | None:
    """Return the name that the lab's Pod has, or would have."""
    try:
        payload = tasks.parse_payload(task.name, task.args, task.kwargs)
    except InvalidTask:
        return None
    if not isinstance(payload, tasks.CreateLabPod):
        return None
    return lab_object_name(payload.lab_instance_id, payload.docker_image)
