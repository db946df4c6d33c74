"""The classification table: what Kubernetes reports -> category, retry or not, and the sentence.

Container waiting reasons are the kubelet's (pkg/kubelet/images/types.go and
pkg/kubelet/container/sync_result.go); API statuses are those of
https://kubernetes.io/docs/reference/using-api/api-concepts/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs.cluster import ApiError, ApiUnavailable
from jobs.errors import Category, JobError, PermanentError, TransientError

_IMAGE = Category.PERMANENT_IMAGE_ERROR
_INVALID = Category.PERMANENT_INVALID_REQUEST

#: Waiting reasons that time does not heal. {image} is the lab's image.
_FATAL_WAITING: dict[str, tuple[Category, str]] = {
    "ImagePullBackOff": (
        _IMAGE,
        'The image "{image}" of this lab cannot be loaded.'
        " The teacher must correct the image name or its access; starting again will not help until then.",
    ),
    "InvalidImageName": (
        _IMAGE,
        'The image name "{image}" of this lab is not valid. The teacher must correct it.',
    ),
    "ErrImageNeverPull": (
        _IMAGE,
        'The image "{image}" of this lab is not on the server and may not be loaded.'
        " The teacher must correct it.",
    ),
    "CrashLoopBackOff": (
        _IMAGE,
        'The program in the image "{image}" of this lab ends right after its start.'
        " The teacher must correct the image.",
    ),
    "RunContainerError": (
        _IMAGE,
        'The program in the image "{image}" of this lab cannot be started.'
        " The teacher must correct the image.",
    ),
    "CreateContainerError": (
        _IMAGE,
        'The image "{image}" of this lab cannot be started. The teacher must correct the image.',
    ),
    "CreateContainerConfigError": (
        _IMAGE,
        'The image "{image}" of this lab cannot be started as it is, for example because'
        " it wants to run as root."
        " The teacher must correct the image.",
    ),
}

#: Words of a registry or of DNS after which no other pull will do better.
_PULL_IS_HOPELESS = ("not found", "denied", "unauthorized", "forbidden", "does not exist", "no such host")


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a container is not running: the kubelet's reason and message."""

    reason: str
    message: str


def waiting_containers(pod: dict[str, Any]) -> Iterator[Waiting]:
    """Yield the waiting states of a Pod's containers."""
    status = pod.get("status", {})
    for container in status.get("initContainerStatuses", []) + status.get("containerStatuses", []):
        if waiting := container.get("state", {}).get("waiting"):
            yield Waiting(waiting.get("reason", ""), waiting.get("message", ""))


def fatal_pod_error(pod: dict[str, Any], image: str) -> JobError | None:
    """Return the error of a Pod that is not worth waiting for, or None while it still is."""
    for waiting in waiting_containers(pod):
        if error := _waiting_error(waiting, image):
            return error
    status = pod.get("status", {})
    if status.get("phase") not in ("Failed", "Succeeded"):
        return None
    evidence = f"phase {status['phase']} {status.get('reason', '')} {status.get('message', '')}"
    if status.get("reason"):  # Evicted, OutOfcpu, NodeShutdown: the node's doing, not the program's
        return TransientError(
            Category.TEMPORARY_RESOURCE_ERROR,
            "The server had no room for this lab; it is tried again by itself.",
            evidence=evidence,
        )
    sentence = _FATAL_WAITING["CrashLoopBackOff"][1].format(image=image)
    return PermanentError(_IMAGE, sentence, evidence=evidence)


def _waiting_error(waiting: Waiting, image: str) -> JobError | None:
    evidence = f"{waiting.reason}: {waiting.message}"
    message = waiting.message.lower()
    if waiting.reason in ("ErrImagePull", "ImagePullBackOff"):
        if any(word in message for word in _PULL_IS_HOPELESS):
            category, sentence = _FATAL_WAITING["ImagePullBackOff"]
            return PermanentError(category, sentence.format(image=image), evidence=evidence)
        if waiting.reason == "ErrImagePull":
            return None  # the kubelet tries once more by itself
        return TransientError(
            Category.TEMPORARY_NETWORK_ERROR,
            f'The server of the image "{image}" does not answer; the lab is tried again by itself.',
            evidence=evidence,
        )
    if waiting.reason not in _FATAL_WAITING or "deadline exceeded" in message:
        return None
    category, sentence = _FATAL_WAITING[waiting.reason]
    return PermanentError(category, sentence.format(image=image), evidence=evidence)


def not_ready_error(pod: dict[str, Any], image: str, waited_s: float) -> JobError:
    """Return the error of a Pod that was not Ready in time, by what was seen last."""
    conditions = {c["type"]: c for c in pod.get("status", {}).get("conditions", [])}
    scheduled = conditions.get("PodScheduled", {})
    last = "; ".join(f"{w.reason}: {w.message}" for w in waiting_containers(pod))
    if scheduled.get("status") == "False":
        return TransientError(
            Category.TEMPORARY_RESOURCE_ERROR,
            "There is no free place for this lab at the moment; it is tried again by itself.",
            evidence=f"after {waited_s:.0f} s: {scheduled.get('reason')}: {scheduled.get('message')}",
        )
    if last or not any(_is_running(status) for status in pod.get("status", {}).get("containerStatuses", [])):
        return TransientError(
            Category.TEMPORARY_RESOURCE_ERROR,
            "The lab takes longer than usual to start; it is tried again by itself.",
            evidence=f"after {waited_s:.0f} s: {last or 'no container runs'}",
        )
    return PermanentError(
        _IMAGE,
        f'The program in the image "{image}" of this lab runs but does not answer.'
        " The teacher must correct the image.",
        evidence=f"not Ready after {waited_s:.0f} s",
    )


def _is_running(container_status: dict[str, Any]) -> bool:
    return "running" in container_status.get("state", {})


def api_error(error: ApiError | ApiUnavailable) -> JobError:
    """Return the job's error for one of the API server."""
    if isinstance(error, ApiUnavailable):
        return TransientError(
            Category.TEMPORARY_NETWORK_ERROR,
            "The cluster does not answer at the moment; the lab is tried again by itself.",
            evidence=str(error),
        )
    if error.status == 403 and "exceeded quota" in error.message:
        return TransientError(
            Category.TEMPORARY_RESOURCE_ERROR,
            "All places for labs are taken at the moment; the lab is tried again by itself.",
            evidence=str(error),
        )
    if error.status == 409:
        return TransientError(
            Category.TEMPORARY_RESOURCE_ERROR,
            "The lab's objects were changed by somebody else meanwhile; it is tried again by itself.",
            evidence=str(error),
        )
    # RBAC writes "cannot"; admission (Pod Security, policies, limits) names what it objects to.
    if error.status == 401 or (error.status == 403 and " cannot " in error.message):
        return PermanentError(
            Category.PERMANENT_PERMISSION_ERROR,
            "The platform lacks a right it needs for labs. The administrator must correct its access.",
            evidence=str(error),
        )
    return PermanentError(
        _INVALID,
        "The cluster refuses this lab as it is described. The teacher or the administrator must"
        " correct the lab's settings.",
        evidence=str(error),
    )
