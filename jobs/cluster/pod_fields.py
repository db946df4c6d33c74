"""Read single fields of a Pod; jobs.cluster.pod_status judges what they mean together for a lab."""

from __future__ import annotations

import enum

from jobs.cluster.client import Manifest


class State(enum.Enum):
    """The use that a Pod is of to its lab."""

    READY = "ready"
    #: Not yet, or not at the moment.
    UNREADY = "unready"
    #: The Pod's deletion is under way.
    GOING = "going"
    #: It is over, or will not become Ready any more.
    LOST = "lost"


def state_of(item: Manifest) -> State:
    """Return the state that the API server itself names; a Service or NetworkPolicy is GOING or UNREADY."""
    if item.get("metadata", {}).get("deletionTimestamp"):
        return State.GOING
    if is_over(item):
        return State.LOST
    return State.READY if condition(item, "Ready").get("status") == "True" else State.UNREADY


def is_over(pod: Manifest) -> bool:
    """Tell whether no container of a Pod will ever run again."""
    return pod.get("status", {}).get("phase") in ("Failed", "Succeeded")


def end_of(pod: Manifest) -> str:
    status = pod["status"]
    return " ".join(str(status[key]) for key in ("phase", "reason", "message") if status.get(key))


def container_statuses(pod: Manifest) -> list[Manifest]:
    """Return the states of a Pod's containers, those that run before the others first."""
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]


def all_run(pod: Manifest) -> bool:
    found = pod.get("status", {}).get("containerStatuses", [])
    return bool(found) and all("running" in container.get("state", {}) for container in found)


def condition(pod: Manifest, kind: str) -> Manifest:
    """Return a condition of a Pod; without one of this type, a condition without fields."""
    conditions: list[Manifest] = pod.get("status", {}).get("conditions") or []
    return next((one for one in conditions if one.get("type") == kind), {})


def spec_of(pod: Manifest, container: Manifest) -> Manifest:
    """Return the part of a Pod's spec that describes a container, by the container's name."""
    spec = pod.get("spec", {})
    specs: list[Manifest] = [*spec.get("containers", []), *spec.get("initContainers", [])]
    return next((one for one in specs if one.get("name") == container.get("name")), {})


def image_of(pod: Manifest, container: Manifest | None) -> str:
    """Return the image of a container, or of the first, which is the lab's where a template has several."""
    specs = [spec_of(pod, container)] if container else pod.get("spec", {}).get("containers", [])
    return str(specs[0].get("image", "")) if specs else ""
