"""Read what a lab's container may use: asked for, in force, and how far a change of it has come.

A Pod's `spec` is what is asked for. What is in force stands in its status, written by the kubelet, whose
conditions count only for the generation that they have observed:
https://kubernetes.io/docs/tasks/configure-pod-container/resize-container-resources/
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dispatcher.quantities import parse_quantity
from jobs.cluster.client import Manifest
from jobs.config import naming

#: Resources that can be changed while a container runs.
RESIZABLE = ("cpu", "memory")
#: The kubelet refuses a memory limit in these words (pkg/kubelet/kuberuntime: validateMemoryResizeAction).
_BELOW_USE = "below current usage"


@dataclass(frozen=True, slots=True)
class Resources:
    """Limits and requests of one container, cpu and memory alone, as Kubernetes writes them."""

    limits: dict[str, str]
    requests: dict[str, str]

    @classmethod
    def read(cls, resources: Mapping[str, Any]) -> Resources:
        parts = (resources.get(part) or {} for part in ("limits", "requests"))
        return cls(*({name: str(part[name]) for name in RESIZABLE if name in part} for part in parts))

    def __str__(self) -> str:
        """Return the limits in words, for a student."""
        return ", ".join(f"{name} {value}" for name, value in self.limits.items())

    def equals(self, other: Resources) -> bool:
        """Compare by value: 1Gi is 1024Mi."""
        return _values(self) == _values(other)

    def as_dict(self) -> dict[str, dict[str, str]]:
        return asdict(self)


class Progress(enum.Enum):
    """The state of a change."""

    #: What is asked for is in force.
    DONE = enum.auto()
    #: The kubelet is at it, or has not seen it.
    UNDER_WAY = enum.auto()
    #: The node lacks room, which may change.
    DEFERRED = enum.auto()
    #: The node can never do it.
    INFEASIBLE = enum.auto()
    #: The container uses more memory than it is to have.
    BELOW_USE = enum.auto()
    #: The kubelet tried, and tries again.
    FAILING = enum.auto()


@dataclass(frozen=True, slots=True)
class ResizeStatus:
    """The state of a change, as a Pod's status has it."""

    progress: Progress
    #: The kubelet's words.
    evidence: str = ""


def lab_container(pod: Manifest, lab_instance_id: int) -> str:
    """Return the container with the lab's image, after which the Pod is called; else the first."""
    containers = pod["spec"]["containers"]
    name = pod["metadata"]["name"]
    own = [c for c in containers if naming.lab_object_name(lab_instance_id, c["image"]) == name]
    return str((own or containers)[0]["name"])


def asked_for(pod: Manifest, container: str) -> Resources:
    return Resources.read(_named(pod["spec"]["containers"], container).get("resources") or {})


def in_force(pod: Manifest, container: str) -> Resources:
    """Return what a container has: limits of its cgroup, requests that the node has set aside.

    Empty where the kubelet has not said that yet.
    """
    status = _named(pod.get("status", {}).get("containerStatuses", []), container)
    limits = Resources.read(status.get("resources") or {}).limits
    # Requests are read back from cpu.shares or cpu.weight, which are coarser.
    return Resources(limits, Resources.read({"requests": status.get("allocatedResources")}).requests)


def before_change(pod: Manifest, container: str) -> Resources:
    """Return what a container is to have if its change is taken back: what is in force, if that is known."""
    asked, has = asked_for(pod, container), in_force(pod, container)
    return Resources(asked.limits | has.limits, asked.requests | has.requests)


def restarts(pod: Manifest, container: str) -> int:
    status = _named(pod.get("status", {}).get("containerStatuses", []), container)
    return int(status.get("restartCount", 0))


def was_out_of_memory(pod: Manifest, container: str) -> bool:
    """Tell whether a container was last ended for its use of memory."""
    status = _named(pod.get("status", {}).get("containerStatuses", []), container)
    states = (status.get(state, {}).get("terminated", {}) for state in ("lastState", "state"))
    return any(ended.get("reason") == "OOMKilled" for ended in states)


def look(pod: Manifest, container: str) -> ResizeStatus:
    """Return how far the change that the Pod's spec asks for has come."""
    status = pod.get("status", {})
    generation = pod["metadata"].get("generation", 0)
    for condition in status.get("conditions", []):
        current = condition.get("observedGeneration", generation) >= generation
        if condition["status"] == "True" and current and (seen := _read_condition(condition)):
            return seen
    observed = status.get("observedGeneration", generation) >= generation
    if observed and in_force(pod, container).equals(asked_for(pod, container)):
        return ResizeStatus(Progress.DONE)
    return ResizeStatus(Progress.UNDER_WAY, "" if observed else "the node has not seen it")


def _read_condition(condition: Mapping[str, Any]) -> ResizeStatus | None:
    kind, reason = condition["type"], condition.get("reason", "")
    evidence = f"{kind} {reason}: {condition.get('message', '')}"
    if kind == "PodResizePending":
        infeasible = reason == "Infeasible"
        return ResizeStatus(Progress.INFEASIBLE if infeasible else Progress.DEFERRED, evidence)
    if kind != "PodResizeInProgress":
        return None
    if reason != "Error":
        return ResizeStatus(Progress.UNDER_WAY, evidence)
    below = _BELOW_USE in condition.get("message", "")
    return ResizeStatus(Progress.BELOW_USE if below else Progress.FAILING, evidence)


def _named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next((item for item in items if item["name"] == name), {})


def _values(resources: Resources) -> list[dict[str, Any]]:
    parts = (resources.limits, resources.requests)
    return [{name: parse_quantity(value) for name, value in part.items()} for part in parts]
