"""Change what the container of a lab's Pod may use, through the `resize` subresource, or take it back.

What was in force before stands in an annotation of the Pod from before the change until it is settled, so
that whoever comes after a container that was killed can finish or undo it. The annotation belongs to one
task: another waits until it is gone, or takes it over, with what was in force before both. Every write names
the version of the Pod that it was decided on.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from jobs.cluster.client import Manifest
from jobs.cluster.lab_objects import LabGone, LabObjects, PodChanged
from jobs.cluster.pod_resources import (
    Progress,
    ResizeStatus,
    Resources,
    asked_for,
    before_change,
    lab_container,
    look,
    restarts,
    was_out_of_memory,
)
from jobs.failures import Failure
from jobs.steps import reached

logger = logging.getLogger(__name__)

NOTE = "autolabs.io/resize"
#: Seconds between looks at whether the change is still wanted.
_MEANWHILE_S = 3.0
#: Writes that may meet a newer version of the Pod, one after the other; its kubelet writes few in a row.
_TRIES = 20
#: States of a change that no wait will change.
_SETTLED = {Progress.DONE, Progress.INFEASIBLE, Progress.BELOW_USE}


class Superseded(Exception):
    """Raised when another task has taken the change over."""


@dataclass(frozen=True, slots=True)
class Note:
    """The task that changes the Pod, and what was in force before."""

    task_id: str
    before: Resources

    @classmethod
    def of(cls, pod: Manifest) -> Note | None:
        """Return the note of a Pod; one that cannot be read counts as none."""
        try:
            found = json.loads((pod["metadata"].get("annotations") or {})[NOTE])
            return cls(str(found["task"]), Resources.read(found["before"]))
        except (KeyError, ValueError, TypeError, AttributeError):
            return None


class PodResize:
    """The change of one Pod by one task."""

    def __init__(self, objects: LabObjects, lab_instance_id: int, pod: Manifest, task_id: str) -> None:
        self._objects = objects
        self._task_id = task_id
        self._pod = pod
        self._container = lab_container(pod, lab_instance_id)
        self._restarts_before = restarts(pod, self._container)

    @property
    def restarts(self) -> int:
        return restarts(self._pod, self._container) - self._restarts_before

    @property
    def is_noted(self) -> bool:
        """True while the Pod says that this task changes it."""
        note = Note.of(self._pod)
        return note is not None and note.task_id == self._task_id

    def begin(
        self,
        make_wanted: Callable[[Resources, str], Resources],
        *,
        patience_s: float,
        meanwhile: Callable[[], None],
    ) -> tuple[Resources, Resources]:
        """Note the change at the Pod; return what was in force and what is wanted, equal if all is well.

        `make_wanted` is given what was in force before and the Pod's QoS class, which no change may change.
        For a change of another task this waits `patience_s` seconds. Raises LabGone if the Pod is deleted,
        JobError if the API server refuses, and what `meanwhile` raises.
        """
        deadline = time.monotonic() + patience_s
        while True:
            note = Note.of(self._pod)
            if note and note.task_id != self._task_id and time.monotonic() < deadline:
                self._wait_for_another(min(deadline, time.monotonic() + _MEANWHILE_S))
                meanwhile()
                continue
            before = note.before if note else before_change(self._pod, self._container)
            wanted = make_wanted(before, self._pod.get("status", {}).get("qosClass", ""))
            done = look(self._pod, self._container).progress is Progress.DONE
            if done and not note and wanted.equals(asked_for(self._pod, self._container)):
                return wanted, wanted
            text = json.dumps({"task": self._task_id, "before": before.as_dict(), "to": wanted.as_dict()})
            self._check_there()
            try:
                self._pod = self._objects.change_pod(self._pod, {"metadata": {"annotations": {NOTE: text}}})
            except PodChanged:
                self._read()
                continue
            return before, wanted

    def ask(self, wanted: Resources) -> None:
        """Have the Pod's spec ask for this. Raises as `begin`, and Superseded."""
        patch = {"name": self._container, "resources": wanted.as_dict()}
        self._as_newest({"spec": {"containers": [patch]}}, subresource="resize")

    def wait(self, *, timeout_s: float, meanwhile: Callable[[], None]) -> ResizeStatus:
        """Return the state once the change is in force, or never will be, or time is up. Raises as `ask`."""
        return self._wait(self._look, _SETTLED, timeout_s, meanwhile)

    def undo(self, *, timeout_s: float) -> bool:
        """Ask for what was in force before, and wait for it; False when the node did not confirm it in time.

        Nothing is to be done for a Pod that another task changes, or nobody. Raises as `ask`.
        """
        note = Note.of(self._pod)
        if note is None or note.task_id != self._task_id:
            return True
        self.ask(note.before)
        reached("resize undone")
        # Its program may have run out of memory before: only what is in force now counts.
        seen = self._wait(lambda pod: look(pod, self._container), {Progress.DONE}, timeout_s, lambda: None)
        confirmed = seen.progress is Progress.DONE
        if not confirmed:
            extra = {"action": "resize_unconfirmed", "evidence": seen.evidence}
            logger.warning("the node has not confirmed that a change is undone", extra=extra)
        self.forget()
        return confirmed

    def forget(self) -> None:
        """Take the note off the Pod: the change is settled. Raises as `ask`."""
        self._as_newest({"metadata": {"annotations": {NOTE: None}}})

    def _wait(
        self,
        look_at: Callable[[Manifest], ResizeStatus],
        ends: set[Progress],
        timeout_s: float,
        meanwhile: Callable[[], None],
    ) -> ResizeStatus:
        deadline = time.monotonic() + timeout_s
        while True:
            seen = look_at(self._pod)
            for pod in self._objects.states(self._pod, min(deadline, time.monotonic() + _MEANWHILE_S)):
                self._pod = pod
                self._check_ours()
                seen = look_at(pod)
                if seen.progress in ends:
                    return seen
            if time.monotonic() >= deadline:
                return seen
            meanwhile()

    def _look(self, pod: Manifest) -> ResizeStatus:
        seen = look(pod, self._container)
        if self.restarts > 0 and was_out_of_memory(pod, self._container):
            return ResizeStatus(Progress.BELOW_USE, f"OOMKilled; {seen.evidence}")
        return seen

    def _as_newest(self, change: Manifest, *, subresource: str = "") -> None:
        """Change the Pod as it is now, as long as this task is the one to change it."""
        for _ in range(_TRIES):
            self._check_ours()
            try:
                self._pod = self._objects.change_pod(self._pod, change, subresource=subresource)
                return
            except PodChanged:
                self._read()
        raise Failure.CHANGED_MEANWHILE.error(evidence=f"{_TRIES} times while Pod {self._name} was changed")

    def _wait_for_another(self, deadline: float) -> None:
        extra = {"action": "resize_waits", "pod": self._name}
        logger.info("another task changes the pod's resources", extra=extra)
        began_with = Note.of(self._pod)
        for pod in self._objects.states(self._pod, deadline):
            self._pod = pod
            if Note.of(pod) != began_with:
                return

    @property
    def _name(self) -> str:
        return str(self._pod["metadata"]["name"])

    def _read(self) -> None:
        found = self._objects.find_pod(self._name)
        if found is None or found["metadata"]["uid"] != self._pod["metadata"]["uid"]:
            raise LabGone
        self._pod = found

    def _check_there(self) -> None:
        if self._pod["metadata"].get("deletionTimestamp"):
            raise LabGone

    def _check_ours(self) -> None:
        self._check_there()
        if not self.is_noted:
            raise Superseded
