"""Judge a Pod: what it is good for, and which failure it shows, while its lab starts and while it runs.

Pure functions on what the API server says, called by jobs.cluster.lab_objects for a lab that starts, by the
health check for one that runs, and by jobs.verify for the list of all Pods. Container waiting reasons are the
kubelet's (pkg/kubelet/images/types.go and pkg/kubelet/container/sync_result.go).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from jobs.cluster.client import Manifest, api_time
from jobs.cluster.pod_fields import (
    State,
    condition,
    container_statuses,
    end_of,
    image_of,
    is_over,
    spec_of,
    state_of,
)
from jobs.errors import JobError
from jobs.failures import Failure

if TYPE_CHECKING:
    from jobs.config.lifetimes import LifeSettings


@dataclass(frozen=True, slots=True)
class PodStatus:
    """The state of one Pod and, if it is LOST, why."""

    state: State
    #: Failure of a Pod that is LOST; None where only its state was asked for.
    failure: Failure | None = None
    #: The image that the failure is about.
    image: str = ""
    evidence: str = ""
    #: Time at which a program of a Pod that is Ready again was last ended for want of memory.
    killed_at: datetime | None = None

    def error(self) -> JobError:
        if self.failure is None:
            raise ValueError(f"the Pod is {self.state.value}")
        return self.failure.error(evidence=self.evidence, image=self.image)


#: Reasons of the kubelet for a container that waits, of those that time does not heal.
FATAL_WAITING: dict[str, Failure] = {
    "InvalidImageName": Failure.IMAGE_NAME_INVALID,
    "ErrImageNeverPull": Failure.IMAGE_NOT_ON_SERVER,
    "SignatureValidationFailed": Failure.IMAGE_NOT_LOADABLE,
    "CrashLoopBackOff": Failure.PROGRAM_ENDS,
    "RunContainerError": Failure.PROGRAM_NOT_STARTED,
    "CreateContainerError": Failure.CONTAINER_NOT_CREATED,
    "CreateContainerConfigError": Failure.CONTAINER_NOT_ALLOWED,
}
_Ending = tuple[Failure, Failure | None]
#: Reason in the status of a Pod that is over -> failure of a lab that starts, and of one that was Ready; None
#: if what its programs did says more. A Pod that its own program ended has no reason.
_ENDED: dict[str, _Ending] = {
    "NodeLost": (Failure.NODE_ENDED_IT, Failure.NODE_AWAY),
    "DeadlineExceeded": (Failure.NODE_ENDED_IT, None),  # activeDeadlineSeconds of the template
}
#: Every other reason (Evicted, OutOfcpu, NodeShutdown, Terminated, Preempting) is the node's doing as well.
_ENDED_BY_NODE: _Ending = (Failure.NODE_ENDED_IT, Failure.POD_EVICTED)
#: DisruptionTarget reasons with which the control plane deletes what is on a node that does not answer, or
#: is gone.
_NODE_WENT = ("DeletionByTaintManager", "DeletionByPodGC")
#: Words of a registry or of DNS after which no other pull will do better.
_PULL_IS_HOPELESS = (
    *("not found", "manifest unknown", "does not exist", "no such host"),
    *("denied", "unauthorized", "forbidden", "signature validation failed"),
)
#: The scheduler writes this about each node that lacks cpu, memory, storage or places for pods.
_LACKS_ROOM = ("insufficient", "too many pods")
# Patterns are compiled where they are used: a lab that starts needs none of them.
#: A part that a message quotes; it may be of any length, so nothing here may take time quadratic in it.
_QUOTED = r'"[^"]*"|\[[^][]*\]'
#: Words of the kubelet that it ended a Pod for the Pod's own use of disk (pkg/kubelet/eviction/helpers.go).
_OWN_DISK = (
    r"Usage of EmptyDir volume|Pod ephemeral local storage usage exceeds|Container \S+ exceeded its local"
)
#: Words of the kubelet that a template takes a variable from what is not there.
_LACKS_OBJECT = r'(configmap|secret) "[^"]*" not found|couldn\'t find key'
#: Exit code of a program that was ended by SIGKILL.
_KILLED = 137
#: Seconds for which a deletion that should be done may go on: a kubelet is late at times.
STUCK_S = 60.0
#: Most by which a node's clock is taken to be wrong. Some writes date nothing, such as a reason for waiting.
_MOST_BEHIND = timedelta(minutes=5)
#: The kubelet gives the times of one event up to this far apart.
_ONE_EVENT = timedelta(seconds=2)
#: Status of most Pods; one object for all of them, as there are thousands.
_PLAIN = {state: PodStatus(state) for state in State}


def listed_status(pod: Manifest) -> PodStatus:
    """Return the state that the API server itself names, and what it says of a Pod that is over."""
    state = state_of(pod)
    return PodStatus(state, evidence=end_of(pod)[:300]) if is_over(pod) else _PLAIN[state]


def starting_status(pod: Manifest, image: str) -> PodStatus:
    """Judge the Pod of a lab that starts: LOST once it is not worth waiting for.

    `image` is the lab's; what a container of another image does is the template's fault.
    """
    state = state_of(pod)
    if state in (State.READY, State.GOING):
        return _PLAIN[state]
    for container in container_statuses(pod):
        if lost := _waits_in_vain(pod, container, image):
            return lost
    return _ended_while_starting(pod, image) if state is State.LOST else _PLAIN[state]


def late_status(pod: Manifest, image: str, waited_s: float, *, began_late: bool = False) -> PodStatus:
    """Judge the Pod of a lab that did not become Ready in time, by what was seen last.

    `began_late`: its program was not given the time to answer.
    """
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        said = str(scheduled.get("message"))
        lacks_room = any(words in said.lower() for words in _LACKS_ROOM)
        failure = Failure.NO_ROOM if lacks_room else Failure.NO_FITTING_SERVER
        return _lost(failure, f"after {waited_s:.0f} s: {scheduled.get('reason')}: {said}")
    states = [container.get("state", {}) for container in container_statuses(pod)]
    waits = [state["waiting"] for state in states if state.get("waiting")]
    waiting = "; ".join(f"{one.get('reason', '')}: {one.get('message', '')}" for one in waits)
    running = [one for one in container_statuses(pod) if "running" in one.get("state", {})]
    if waiting or not running or began_late:
        seen = waiting or ("began to run late" if running else "no container runs")
        return _lost(Failure.SLOW_START, f"after {waited_s:.0f} s: {seen}")
    evidence = f"not Ready after {waited_s:.0f} s"
    unready = [spec_of(pod, one) for one in running if not one.get("ready")]
    if unready and not any(_is_of_lab(spec, image) for spec in unready):
        return _fault_of_template(unready[0], evidence)
    return _lost(Failure.DOES_NOT_ANSWER, evidence, image)


def running_status(pod: Manifest, now: datetime, settings: LifeSettings) -> PodStatus:
    """Judge the Pod of a RUNNING lab; `now` is compared with the cluster's times.

    A Pod that somebody takes down is GOING until that hangs, and one that is not Ready has `unready_limit_s`
    to become so again; only what will not heal is LOST before.
    """
    state = state_of(pod)
    if state is State.GOING:
        return _going(pod, now)
    if state is State.LOST:
        return _ended_while_running(pod)
    if state is State.READY:
        killed_at = _killed_at(pod)
        return PodStatus(state, killed_at=killed_at) if killed_at else _PLAIN[state]
    for container in container_statuses(pod):
        if _loops(container, settings):
            return _lost_by_program(pod, container)
    since = api_time(condition(pod, "Ready").get("lastTransitionTime"))
    since = since + _clock_behind(pod) if since else api_time(pod["metadata"].get("creationTimestamp"))
    if since is None or now - since <= timedelta(seconds=settings.unready_limit_s):
        return _PLAIN[state]
    return _long_unready(pod, since, now)


def _clock_behind(pod: Manifest) -> timedelta:
    """Return by how much the node's clock is behind the API server's, as the last write of the status shows.

    The node dates what happens to a Pod, and the API server dates the write that says so, at once.
    """
    written = [
        one.get("time")
        for one in pod["metadata"].get("managedFields", ())
        if one.get("subresource") == "status"
    ]
    dated = [one.get("lastTransitionTime") for one in pod.get("status", {}).get("conditions", ())]
    for container in container_statuses(pod):
        for key in ("state", "lastState"):
            for state in (container.get(key) or {}).values():
                dated += [state.get("startedAt"), state.get("finishedAt")]
    writes, dates = [api_time(one) for one in written if one], [api_time(one) for one in dated if one]
    if not writes or not dates:
        return timedelta()
    behind = max(filter(None, writes)) - max(filter(None, dates))
    return max(-_MOST_BEHIND, min(behind, _MOST_BEHIND))


def _lost(failure: Failure, evidence: str, image: str = "") -> PodStatus:
    return PodStatus(State.LOST, failure, image, evidence)


def _ended_by(pod: Manifest) -> _Ending:
    """Return what ended a Pod that is over; PROGRAM_ENDS, and None once it ran, if its own program did."""
    status = pod["status"]
    if re.match(_OWN_DISK, status.get("message", "")):
        return Failure.OUT_OF_DISK, Failure.OUT_OF_DISK
    reason = "NodeLost" if _is_node_gone(pod) else status.get("reason")
    return _ENDED.get(reason, _ENDED_BY_NODE) if reason else (Failure.PROGRAM_ENDS, None)


def _how_it_ended(pod: Manifest, container: Manifest) -> Failure:
    reasons = set()
    for key in ("state", "lastState"):
        ended = container.get(key, {}).get("terminated", {})
        reasons.add(ended.get("reason"))
        # On a busy node the kernel's word comes too late for the kubelet; nobody else kills.
        if ended.get("exitCode") == _KILLED and not _is_killed_by_kubelet(spec_of(pod, container)):
            return Failure.OUT_OF_MEMORY
    if "OOMKilled" in reasons:
        return Failure.OUT_OF_MEMORY
    # RunContainerError lasts a moment; what stays of it is a back-off like that of a program which ended.
    return Failure.PROGRAM_NOT_STARTED if "StartError" in reasons else Failure.PROGRAM_ENDS


def _is_killed_by_kubelet(spec: Manifest) -> bool:
    """Tell whether the kubelet may have ended a container: for a probe, or a hook, that failed."""
    hooked = "postStart" in (spec.get("lifecycle") or {})
    return hooked or "livenessProbe" in spec or "startupProbe" in spec


def _waits_in_vain(pod: Manifest, container: Manifest, image: str) -> PodStatus | None:
    waiting = container.get("state", {}).get("waiting")
    if not waiting:
        return None
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    failure, spec = _waiting_failure(reason, message), spec_of(pod, container)
    if failure is Failure.PROGRAM_ENDS:
        failure = _how_it_ended(pod, container)
    if failure is None:
        return None
    evidence = f"{reason}: {message}"
    if failure is Failure.REGISTRY_AWAY:
        return _lost(failure, evidence, spec.get("image", image))
    if failure is not Failure.TEMPLATE_INVALID and not _is_of_lab(spec, image):
        return _fault_of_template(spec, evidence)
    return _lost(failure, evidence, image)


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


def _ended_while_starting(pod: Manifest, image: str) -> PodStatus:
    evidence = f"phase {end_of(pod)}"
    failure, _ = _ended_by(pod)
    failed = [
        container
        for container in container_statuses(pod)
        if container.get("state", {}).get("terminated", {}).get("exitCode", 0) != 0
    ]
    if failure is not Failure.PROGRAM_ENDS or not failed:
        return _lost(failure, evidence, image)
    # Sidecars are ended with the lab: what the lab's own program did comes first.
    container = next((one for one in failed if _is_of_lab(spec_of(pod, one), image)), failed[0])
    if _is_of_lab(spec_of(pod, container), image):
        return _lost(_how_it_ended(pod, container), evidence, image)
    ended = container["state"]["terminated"]
    said = f"{evidence}: {ended.get('reason')}, exit code {ended.get('exitCode')}"
    return _fault_of_template(spec_of(pod, container), said)


def _is_of_lab(spec: Manifest, image: str) -> bool:
    used: str = spec.get("image", image)
    return used == image or used.endswith(f"/{image}")  # as where a template puts a mirror in front


def _fault_of_template(spec: Manifest, said: str) -> PodStatus:
    evidence = f"container {spec['name']} of the template, image {spec['image']}: {said}"
    return _lost(Failure.TEMPLATE_INVALID, evidence)


def _going(pod: Manifest, now: datetime) -> PodStatus:
    late_s = (now - datetime.fromisoformat(pod["metadata"]["deletionTimestamp"])).total_seconds()
    if late_s <= STUCK_S:
        return _PLAIN[State.GOING]
    failure = Failure.NODE_AWAY if _is_node_silent(pod) else Failure.POD_GONE
    return _lost_while_running(pod, failure, f"its deletion hangs for {late_s:.0f} s")


def _ended_while_running(pod: Manifest) -> PodStatus:
    _, failure = _ended_by(pod)
    if failure is None:
        ends = {_how_it_ended(pod, container) for container in container_statuses(pod)}
        failure = Failure.OUT_OF_MEMORY if Failure.OUT_OF_MEMORY in ends else Failure.PROGRAM_ENDED
    return _lost_while_running(pod, failure, f"phase {end_of(pod)}")


def _long_unready(pod: Manifest, since: datetime, now: datetime) -> PodStatus:
    said = f"not Ready for {(now - since).total_seconds():.0f} s"
    if _is_node_silent(pod):
        return _lost_while_running(pod, Failure.NODE_AWAY, f"{said}, while its containers are")
    for container in container_statuses(pod):
        if not container.get("ready") and _last_end(container) and _is_why(container, since):
            return _lost_by_program(pod, container, said)
    # What keeps a container from its next start: its image is gone, for example.
    next_start = starting_status(pod, image_of(pod, None))
    if next_start.failure and not next_start.failure.retry:
        return _lost_while_running(pod, next_start.failure, f"{said}: {next_start.evidence}")
    # A Pod that never ran is not the one that the lab had.
    never_ran = pod.get("status", {}).get("phase") == "Pending"
    return _lost_while_running(pod, Failure.POD_GONE if never_ran else Failure.STOPPED_ANSWERING, said)


def _lost_by_program(pod: Manifest, container: Manifest, said: str = "") -> PodStatus:
    failure = _how_it_ended(pod, container)
    if failure is Failure.PROGRAM_ENDS:
        failure = Failure.PROGRAM_CRASHES
    return _lost_while_running(pod, failure, said, container)


def _lost_while_running(
    pod: Manifest, failure: Failure, said: str, container: Manifest | None = None
) -> PodStatus:
    # A lab that starts needs none of it.
    from jobs.cluster.pod_facts import pod_facts, short, summary

    evidence = "; ".join(filter(None, (short(said), summary(pod_facts(pod)))))
    return _lost(failure, evidence, image_of(pod, container))


def _loops(container: Manifest, settings: LifeSettings) -> bool:
    """Tell whether a program does not run, after it ended again and again, and lastly soon after its start.

    One that ran for longer is given the limit of any Pod that is not Ready, which a loop soon passes.
    """
    state = container.get("state", {})
    if int(container.get("restartCount", 0)) < settings.crash_limit or "running" in state:
        return False
    if state.get("waiting", {"reason": "CrashLoopBackOff"}).get("reason") != "CrashLoopBackOff":
        return False
    ended = _last_end(container)
    began, finished = api_time(ended.get("startedAt")), api_time(ended.get("finishedAt"))
    if began is None or finished is None:
        return False
    return (finished - began).total_seconds() < settings.unready_limit_s


def _is_why(container: Manifest, since: datetime) -> bool:
    """Tell whether the end of a program is why the Pod is not Ready: it does not run, or lacked memory.

    One that ended for another reason, and then runs without an answer, is told of as that.
    """
    running = container.get("state", {}).get("running")
    if not running:
        return True
    started = api_time(running.get("startedAt"))
    killed = _last_end(container).get("reason") == "OOMKilled"
    return killed and started is not None and started >= since - _ONE_EVENT


def _last_end(container: Manifest) -> Manifest:
    for key in ("state", "lastState"):
        ended: Manifest | None = container.get(key, {}).get("terminated")
        if ended:
            return ended
    return {}


def _killed_at(pod: Manifest) -> datetime | None:
    ends = (_last_end(container) for container in container_statuses(pod))
    return next((api_time(end.get("finishedAt")) for end in ends if end.get("reason") == "OOMKilled"), None)


def _is_node_gone(pod: Manifest) -> bool:
    return condition(pod, "DisruptionTarget").get("reason") in _NODE_WENT


def _is_node_silent(pod: Manifest) -> bool:
    """Tell whether the Pod is not Ready because its node is not.

    The node controller writes the Pod's Ready, and nobody is there to write the state of its containers
    (kubernetes pkg/controller/util/node).
    """
    gated = pod.get("spec", {}).get("readinessGates")
    silent = condition(pod, "Ready").get("status") != "True"
    contained = condition(pod, "ContainersReady").get("status") == "True"
    return _is_node_gone(pod) or (silent and not gated and contained)
