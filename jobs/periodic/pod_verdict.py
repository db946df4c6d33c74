"""Whether the Pod of a RUNNING lab can be used, by what the API server says of it alone.

Pure functions. A Pod that somebody takes down is not judged until that hangs, and one that is not Ready has
`unready_limit_s` to become so again; only what will not heal is LOST before.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from jobs.classification import OWN_DISK, container_statuses, how_it_ended, pod_failure
from jobs.cluster import Manifest
from jobs.errors import JobError
from jobs.failures import Failure
from jobs.life_settings import LifeSettings
from jobs.pod_facts import pod_facts, short, summary


class State(enum.Enum):
    """What a Pod is good for."""

    READY = "ready"
    #: Not at the moment.
    UNREADY = "unready"
    #: Its deletion is under way.
    GOING = "going"
    #: Not any more.
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said of one Pod."""

    state: State
    #: Of one that is LOST.
    failure: Failure | None = None
    image: str = ""
    evidence: str = ""
    #: When a program of one that is Ready again was last ended for want of memory, if it was.
    killed_at: datetime | None = None

    def error(self) -> JobError:
        """Return why the lab of a LOST Pod fails."""
        if self.failure is None:
            raise ValueError(f"the Pod is {self.state.value}")
        return self.failure.error(evidence=self.evidence, image=self.image)


#: Seconds for which a deletion that should be done may go on: a kubelet is late at times.
STUCK_S = 60.0
#: By which the kubelet's times of one event differ.
_ONE_BLINK = timedelta(seconds=2)
#: Why the control plane deletes what is on a node that does not answer, or is gone.
_NODE_WENT = ("DeletionByTaintManager", "DeletionByPodGC")
#: A reason of the Pod's status that is the template's own.
_OWN_DEADLINE = "DeadlineExceeded"
_READY = Verdict(State.READY)
_UNREADY = Verdict(State.UNREADY)
_GOING = Verdict(State.GOING)


def judge(pod: Manifest, now: datetime, settings: LifeSettings) -> Verdict:
    """Return what is to be said of the Pod of a RUNNING lab; `now` is compared with the cluster's times."""
    if deleted_by := _time(pod["metadata"].get("deletionTimestamp")):
        return _going(pod, deleted_by, now)
    if pod.get("status", {}).get("phase") in ("Failed", "Succeeded"):
        return _ended(pod)
    ready = _condition(pod, "Ready")
    if ready.get("status") == "True":
        killed_at = _killed_at(pod)
        return Verdict(State.READY, killed_at=killed_at) if killed_at else _READY
    for container in container_statuses(pod):
        if _loops(container, settings):
            return _of_container(pod, container)
    since = _time(ready.get("lastTransitionTime")) or _time(pod["metadata"].get("creationTimestamp"))
    if since is None or now - since <= timedelta(seconds=settings.unready_limit_s):
        return _UNREADY
    return _long_unready(pod, since, now)


def _going(pod: Manifest, deleted_by: datetime, now: datetime) -> Verdict:
    late_s = (now - deleted_by).total_seconds()
    if late_s <= STUCK_S:
        return _GOING
    failure = Failure.NODE_AWAY if _is_node_silent(pod) else Failure.POD_GONE
    return _lost(pod, failure, f"its deletion hangs for {late_s:.0f} s")


def _ended(pod: Manifest) -> Verdict:
    status = pod["status"]
    reason, message = status.get("reason", ""), status.get("message", "")
    said = " ".join(filter(None, ("phase", status["phase"], reason, message)))
    if re.match(OWN_DISK, message):
        return _lost(pod, Failure.OUT_OF_DISK, said)
    if reason == "NodeLost" or _condition(pod, "DisruptionTarget").get("reason") in _NODE_WENT:
        return _lost(pod, Failure.NODE_AWAY, said)
    if reason and reason != _OWN_DEADLINE:  # Evicted, Terminated, Preempting: the node's doing
        return _lost(pod, Failure.POD_EVICTED, said)
    ends = {how_it_ended(container, _spec(pod, container)) for container in container_statuses(pod)}
    failure = Failure.OUT_OF_MEMORY if Failure.OUT_OF_MEMORY in ends else Failure.PROGRAM_ENDED
    return _lost(pod, failure, said)


def _long_unready(pod: Manifest, since: datetime, now: datetime) -> Verdict:
    said = f"not Ready for {(now - since).total_seconds():.0f} s"
    if _is_node_silent(pod):
        return _lost(pod, Failure.NODE_AWAY, f"{said}, while its containers are")
    for container in container_statuses(pod):
        if not container.get("ready") and _last_end(container) and _is_why(container, since):
            return _of_container(pod, container, said)
    # What keeps a container from its next start: its image is gone, for example.
    found = pod_failure(pod, _image(pod, None))
    if found and not found.failure.retry:
        return _lost(pod, found.failure, f"{said}: {found.evidence}")
    # A Pod that never ran is not the one that the lab had.
    never_ran = pod.get("status", {}).get("phase") == "Pending"
    return _lost(pod, Failure.POD_GONE if never_ran else Failure.STOPPED_ANSWERING, said)


def _of_container(pod: Manifest, container: Manifest, said: str = "") -> Verdict:
    failure = how_it_ended(container, _spec(pod, container))
    if failure is Failure.PROGRAM_ENDS:
        failure = Failure.PROGRAM_CRASHES
    return _lost(pod, failure, said, container)


def _lost(pod: Manifest, failure: Failure, said: str, container: Manifest | None = None) -> Verdict:
    evidence = "; ".join(filter(None, (short(said), summary(pod_facts(pod)))))
    return Verdict(State.LOST, failure, _image(pod, container), evidence)


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
    began, finished = _time(ended.get("startedAt")), _time(ended.get("finishedAt"))
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
    anew = _time(running.get("startedAt"))
    killed = _last_end(container).get("reason") == "OOMKilled"
    return killed and anew is not None and anew >= since - _ONE_BLINK


def _last_end(container: Manifest) -> Manifest:
    for key in ("state", "lastState"):
        ended: Manifest | None = container.get(key, {}).get("terminated")
        if ended:
            return ended
    return {}


def _killed_at(pod: Manifest) -> datetime | None:
    ends = (_last_end(container) for container in container_statuses(pod))
    return next((_time(end.get("finishedAt")) for end in ends if end.get("reason") == "OOMKilled"), None)


def _is_node_silent(pod: Manifest) -> bool:
    """Tell whether the Pod is not Ready because its node is not.

    The node controller writes the Pod's Ready, and nobody is there to write the state of its containers
    (kubernetes pkg/controller/util/node).
    """
    if _condition(pod, "DisruptionTarget").get("reason") in _NODE_WENT:
        return True
    gated = pod.get("spec", {}).get("readinessGates")
    silent = _condition(pod, "Ready").get("status") != "True"
    return silent and not gated and _condition(pod, "ContainersReady").get("status") == "True"


def _condition(pod: Manifest, kind: str) -> Manifest:
    conditions: list[Manifest] = pod.get("status", {}).get("conditions") or []
    return next((one for one in conditions if one.get("type") == kind), {})


def _spec(pod: Manifest, container: Manifest) -> Manifest:
    spec = pod.get("spec", {})
    specs: list[Manifest] = [*spec.get("containers", []), *spec.get("initContainers", [])]
    return next((one for one in specs if one.get("name") == container.get("name")), {})


def _image(pod: Manifest, container: Manifest | None) -> str:
    """Return the image of a container, or of the first, which is the lab's where a template has several."""
    specs = [_spec(pod, container)] if container else pod.get("spec", {}).get("containers", [])
    return str(specs[0].get("image", "")) if specs else ""


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
