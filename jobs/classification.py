"""Which failure a Pod, or an answer of the API server, is; None while a Pod is still worth waiting for.

Container waiting reasons are the kubelet's (pkg/kubelet/images/types.go and
pkg/kubelet/container/sync_result.go); API statuses are those of
https://kubernetes.io/docs/reference/using-api/api-concepts/.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from jobs.cluster import ApiError, ApiUnavailable
from jobs.errors import JobError
from jobs.failures import Failure

#: Waiting reasons that time does not heal.
FATAL_WAITING: dict[str, Failure] = {
    "InvalidImageName": Failure.IMAGE_NAME_INVALID,
    "ErrImageNeverPull": Failure.IMAGE_NOT_ON_SERVER,
    "SignatureValidationFailed": Failure.IMAGE_NOT_LOADABLE,
    "CrashLoopBackOff": Failure.PROGRAM_ENDS,
    "RunContainerError": Failure.PROGRAM_NOT_STARTED,
    "CreateContainerError": Failure.CONTAINER_NOT_CREATED,
    "CreateContainerConfigError": Failure.CONTAINER_NOT_ALLOWED,
}
#: Words of a registry or of DNS after which no other pull will do better.
_PULL_IS_HOPELESS = (
    *("not found", "manifest unknown", "does not exist", "no such host"),
    *("denied", "unauthorized", "forbidden", "signature validation failed"),
)
#: Exit code of a program that was ended by SIGKILL.
_KILLED = 137
# Patterns are compiled where they are used: a lab that starts needs none of them.
#: What a message quotes; it may be of any length, so nothing here may take time quadratic in it.
_QUOTED = r'"[^"]*"|\[[^][]*\]'
#: How the kubelet says that it ended a Pod for the Pod's own use of disk (pkg/kubelet/eviction/helpers.go).
OWN_DISK = (
    r"Usage of EmptyDir volume|Pod ephemeral local storage usage exceeds|Container \S+ exceeded its local"
)
#: How the kubelet says that a template takes a variable from what is not there.
_LACKS_OBJECT = r'(configmap|secret) "[^"]*" not found|couldn\'t find key'
#: Admission (Pod Security, policies, limits) answers 403 too, and repeats what it objects to.
_RBAC_SAYS_NO = r'[^"]*("[^"]*" )?is forbidden: User "[^"]*" cannot \w+ (resource|path)'
_QUOTA_SAYS_NO = r'[^"]*("[^"]*" )?is forbidden: exceeded quota'
#: What the scheduler writes about each node that lacks cpu, memory, storage or places for pods.
_LACKS_ROOM = ("insufficient", "too many pods")


def container_statuses(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the states of a Pod's containers, those that run before the others first."""
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]


def pod_failure(pod: dict[str, Any], image: str) -> JobError | None:
    """Return the error of a Pod that is not worth waiting for, or None while it still is.

    `image` is the lab's; what a container of another image does is the template's fault.
    """
    specs = _specs(pod)
    for container in container_statuses(pod):
        if error := _container_failure(container, image, specs.get(container.get("name"), {})):
            return error
    status = pod.get("status", {})
    if status.get("phase") not in ("Failed", "Succeeded"):
        return None
    evidence = f"phase {status['phase']} {status.get('reason', '')} {status.get('message', '')}"
    if re.match(OWN_DISK, status.get("message", "")):
        return Failure.OUT_OF_DISK.error(image=image, evidence=evidence)
    if status.get("reason"):  # Evicted, OutOfcpu, NodeShutdown: the node's doing, not the program's
        return Failure.NODE_ENDED_IT.error(evidence=evidence)
    return _ended_pod(pod, image, evidence)


def _specs(pod: dict[str, Any]) -> dict[str | None, dict[str, Any]]:
    spec = pod.get("spec", {})
    return {c["name"]: c for c in [*spec.get("initContainers", []), *spec.get("containers", [])]}


def _is_of_lab(spec: dict[str, Any], image: str) -> bool:
    used: str = spec.get("image", image)
    return used == image or used.endswith(f"/{image}")  # as where a template puts a mirror in front


def _is_killed_by_kubelet(spec: dict[str, Any]) -> bool:
    """Tell whether the kubelet may have ended a container: for a probe, or a hook, that failed."""
    hooked = "postStart" in (spec.get("lifecycle") or {})
    return hooked or "livenessProbe" in spec or "startupProbe" in spec


def _ended_pod(pod: dict[str, Any], image: str, evidence: str) -> JobError:
    specs, failed = _specs(pod), []
    for container in container_statuses(pod):
        if container.get("state", {}).get("terminated", {}).get("exitCode", 0) != 0:
            failed.append((container, specs.get(container.get("name"), {})))
    # Sidecars are ended with the lab: what the lab's own program did comes first.
    failed.sort(key=lambda found: not _is_of_lab(found[1], image))
    if not failed:
        return Failure.PROGRAM_ENDS.error(image=image, evidence=evidence)
    container, spec = failed[0]
    if not _is_of_lab(spec, image):
        return _template_failure(spec, f"{evidence}: {_told_end(container)}")
    return how_it_ended(container, spec).error(image=image, evidence=evidence)


def _told_end(container: dict[str, Any]) -> str:
    ended = container["state"]["terminated"]
    return f"{ended.get('reason')}, exit code {ended.get('exitCode')}"


def _template_failure(spec: dict[str, Any], said: str) -> JobError:
    evidence = f"container {spec['name']} of the template, image {spec['image']}: {said}"
    return Failure.TEMPLATE_INVALID.error(evidence=evidence)


def how_it_ended(container: dict[str, Any], spec: dict[str, Any]) -> Failure:
    """Return why the last run of a container's program ended; `spec` is the container's."""
    reasons = set()
    for key in ("state", "lastState"):
        ended = container.get(key, {}).get("terminated", {})
        reasons.add(ended.get("reason"))
        # On a busy node the kernel's word comes too late for the kubelet; nobody else kills.
        if ended.get("exitCode") == _KILLED and not _is_killed_by_kubelet(spec):
            return Failure.OUT_OF_MEMORY
    if "OOMKilled" in reasons:
        return Failure.OUT_OF_MEMORY
    # RunContainerError lasts a moment; what stays of it is a back-off like that of a program which ended.
    return Failure.PROGRAM_NOT_STARTED if "StartError" in reasons else Failure.PROGRAM_ENDS


def _container_failure(container: dict[str, Any], image: str, spec: dict[str, Any]) -> JobError | None:
    waiting = container.get("state", {}).get("waiting")
    if not waiting:
        return None
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    failure = _waiting_failure(reason, message)
    if failure is Failure.PROGRAM_ENDS:
        failure = how_it_ended(container, spec)
    if failure is None:
        return None
    evidence = f"{reason}: {message}"
    if failure is Failure.REGISTRY_AWAY:
        return failure.error(image=spec.get("image", image), evidence=evidence)
    if failure is not Failure.TEMPLATE_INVALID and not _is_of_lab(spec, image):
        return _template_failure(spec, evidence)
    return failure.error(image=image, evidence=evidence)


def _waiting_failure(reason: str, message: str) -> Failure | None:
    if reason in ("ErrImagePull", "ImagePullBackOff"):
        said = _without_names(message).lower()
        if any(words in said for words in _PULL_IS_HOPELESS):
            return Failure.IMAGE_NOT_LOADABLE
        # After the first failure the kubelet tries once more by itself.
        return None if reason == "ErrImagePull" else Failure.REGISTRY_AWAY
    if reason not in FATAL_WAITING or "deadline exceeded" in message.lower():
        return None
    failure = FATAL_WAITING[reason]
    if failure is Failure.CONTAINER_NOT_ALLOWED and re.search(_LACKS_OBJECT, message):
        return Failure.TEMPLATE_INVALID
    return failure


def _without_names(message: str) -> str:
    """Return a message without images, tags, addresses and hosts, which may well be called "denied"."""
    words = re.sub(_QUOTED, " / ", message).split()
    # A full stop ends a sentence, any other is in a name.
    return " ".join("/" if "/" in word or "." in word[:-1] else word for word in words)


def _waiting(pod: dict[str, Any]) -> Iterator[str]:
    for container in container_statuses(pod):
        if waiting := container.get("state", {}).get("waiting"):
            yield f"{waiting.get('reason', '')}: {waiting.get('message', '')}"


def all_run(pod: dict[str, Any]) -> bool:
    """Tell whether all containers of a Pod run."""
    found = pod.get("status", {}).get("containerStatuses", [])
    return bool(found) and all("running" in container.get("state", {}) for container in found)


def not_ready(pod: dict[str, Any], image: str, waited_s: float, *, began_late: bool = False) -> JobError:
    """Return the error of a Pod that was not Ready in time, by what was seen last.

    `began_late`: its program was not given the time to answer.
    """
    conditions = {c["type"]: c for c in pod.get("status", {}).get("conditions", [])}
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        said = str(scheduled.get("message"))
        lacks_room = any(words in said.lower() for words in _LACKS_ROOM)
        failure = Failure.NO_ROOM if lacks_room else Failure.NO_FITTING_SERVER
        return failure.error(evidence=f"after {waited_s:.0f} s: {scheduled.get('reason')}: {said}")
    waiting = "; ".join(_waiting(pod))
    runs = any("running" in container.get("state", {}) for container in container_statuses(pod))
    if waiting or not runs or began_late:
        seen = waiting or ("began to run late" if runs else "no container runs")
        return Failure.SLOW_START.error(evidence=f"after {waited_s:.0f} s: {seen}")
    evidence = f"not Ready after {waited_s:.0f} s"
    specs = _specs(pod)
    unready = [c for c in container_statuses(pod) if "running" in c.get("state", {}) and not c.get("ready")]
    of_template = [specs.get(container.get("name"), {}) for container in unready]
    if of_template and not any(_is_of_lab(spec, image) for spec in of_template):
        return _template_failure(of_template[0], evidence)
    return Failure.DOES_NOT_ANSWER.error(image=image, evidence=evidence)


def api_failure(error: ApiError | ApiUnavailable) -> JobError:
    """Return the job's error for one of the API server."""
    return _api_failure(error).error(evidence=str(error))


def _api_failure(error: ApiError | ApiUnavailable) -> Failure:
    if isinstance(error, ApiUnavailable):
        return Failure.CLUSTER_AWAY
    if error.status == 403 and re.match(_QUOTA_SAYS_NO, error.message):
        return Failure.QUOTA_EXCEEDED
    if error.status == 409:
        return Failure.CHANGED_MEANWHILE
    if error.status == 401 or (error.status == 403 and re.match(_RBAC_SAYS_NO, error.message)):
        return Failure.CLUSTER_REFUSES_ACCESS
    return Failure.CLUSTER_REFUSES_LAB
