"""Pods of RUNNING labs are judged; their shapes are those of kubelet and control plane of Kubernetes 1.34."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from jobs.cluster.pod_fields import State
from jobs.cluster.pod_status import PodStatus, running_status
from jobs.config.lifetimes import LifeSettings
from jobs.failures import Failure

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
IMAGE = "registry.gitlab.com/autolabs/labs/demo:1.0.0"
SETTINGS = LifeSettings(unready_limit_s=120, crash_limit=3)
Manifest = dict[str, Any]


def ago(seconds: float) -> str:
    return f"{NOW - timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%SZ}"


def conditions(ready: str, since_s: float, *, containers: str | None = None) -> list[Manifest]:
    reason = {} if ready == "True" else {"reason": "ContainersNotReady"}
    both = {"Ready": ready, "ContainersReady": containers or ready}
    since = {"lastTransitionTime": ago(since_s)}
    return [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(3600)},
        *({"type": kind, "status": status, **since, **reason} for kind, status in both.items()),
    ]


def container(
    state: Manifest, *, ready: bool = False, restarts: int = 0, last: Manifest | None = None
) -> Manifest:
    return {
        "name": "lab",
        "image": IMAGE,
        "ready": ready,
        "started": ready,
        "restartCount": restarts,
        "state": state,
        "lastState": {"terminated": last} if last else {},
    }


def ended(reason: str, code: int, *, ran_s: float = 5, ago_s: float = 20) -> Manifest:
    return {
        "reason": reason,
        "exitCode": code,
        "startedAt": ago(ago_s + ran_s),
        "finishedAt": ago(ago_s),
        "containerID": "containerd://1",
    }


def running(since_s: float = 3600) -> Manifest:
    return {"running": {"startedAt": ago(since_s)}}


BACK_OFF = {
    "waiting": {
        "reason": "CrashLoopBackOff",
        "message": "back-off 20s restarting failed container=lab pod=lab-instance-1-demo_labs(1)",
    }
}


def pod(
    *statuses: Manifest,
    ready: str = "False",
    since_s: float = 30,
    phase: str = "Running",
    containers: str | None = None,
    spec: Manifest | None = None,
    metadata: Manifest | None = None,
    **status: Any,
) -> Manifest:
    return {
        "metadata": {"name": "lab-instance-1-demo", "creationTimestamp": ago(7200), **(metadata or {})},
        "spec": {"nodeName": "node", "containers": [{"name": "lab", "image": IMAGE}], **(spec or {})},
        "status": {
            "phase": phase,
            "conditions": conditions(ready, since_s, containers=containers),
            "containerStatuses": [*statuses] or [container(running(), ready=ready == "True")],
            **status,
        },
    }


def with_condition(made: Manifest, **condition: str) -> Manifest:
    made["status"]["conditions"].append(condition)
    return made


READY = pod(ready="True")
EVICTED: Manifest = {"phase": "Failed", "reason": "Evicted"}
#: Case -> Pod, state, failure.
TABLE: dict[str, tuple[Manifest, State, Failure | None]] = {
    "ready": (READY, State.READY, None),
    "not ready for a moment": (pod(), State.UNREADY, None),
    "not ready for as long as it may": (pod(since_s=120), State.UNREADY, None),
    "not ready for too long": (pod(since_s=121), State.LOST, Failure.STOPPED_ANSWERING),
    "ready again after a crash": (
        pod(container(running(10), ready=True, restarts=7, last=ended("Error", 1)), ready="True"),
        State.READY,
        None,
    ),
    "ended once": (
        pod(container({"terminated": ended("Error", 1, ago_s=1)}, restarts=0), since_s=1),
        State.UNREADY,
        None,
    ),
    "killed for memory once": (
        pod(container({"terminated": ended("OOMKilled", 137, ago_s=1)}), since_s=1),
        State.UNREADY,
        None,
    ),
    "backs off, below the limit": (
        pod(container(BACK_OFF, restarts=2, last=ended("Error", 1))),
        State.UNREADY,
        None,
    ),
    "backs off, at the limit": (
        pod(container(BACK_OFF, restarts=3, last=ended("Error", 1))),
        State.LOST,
        Failure.PROGRAM_CRASHES,
    ),
    "backs off for a moment after a run of minutes": (
        pod(container(BACK_OFF, restarts=3, last=ended("Completed", 0, ran_s=560, ago_s=3)), since_s=3),
        State.UNREADY,
        None,
    ),
    "backs off for long after a run of minutes": (
        pod(container(BACK_OFF, restarts=3, last=ended("Completed", 0, ran_s=150, ago_s=125)), since_s=125),
        State.LOST,
        Failure.PROGRAM_CRASHES,
    ),
    "just ended, after a run of minutes": (
        pod(container({"terminated": ended("Error", 1, ago_s=0, ran_s=150)}, restarts=3)),
        State.UNREADY,
        None,
    ),
    "ends without an error, again and again": (
        pod(container(BACK_OFF, restarts=3, last=ended("Completed", 0))),
        State.LOST,
        Failure.PROGRAM_CRASHES,
    ),
    "killed for memory again and again": (
        pod(container(BACK_OFF, restarts=3, last=ended("OOMKilled", 137))),
        State.LOST,
        Failure.OUT_OF_MEMORY,
    ),
    "just ended, after short runs": (
        pod(container({"terminated": ended("Error", 1, ago_s=0)}, restarts=3)),
        State.LOST,
        Failure.PROGRAM_CRASHES,
    ),
    "just ended, after a long run": (
        pod(container({"terminated": ended("Error", 1, ago_s=0, ran_s=900)}, restarts=9)),
        State.UNREADY,
        None,
    ),
    "runs between two crashes": (
        pod(container(running(3), restarts=9, last=ended("Error", 1, ago_s=4))),
        State.UNREADY,
        None,
    ),
    "backs off for long, below the limit": (
        pod(container(BACK_OFF, restarts=1, last=ended("OOMKilled", 137)), since_s=130),
        State.LOST,
        Failure.OUT_OF_MEMORY,
    ),
    "came back from a lack of memory and does not answer": (
        pod(container(running(299), restarts=1, last=ended("OOMKilled", 137, ago_s=300)), since_s=300),
        State.LOST,
        Failure.OUT_OF_MEMORY,
    ),
    "lacked memory long ago and does not answer now": (
        pod(container(running(3000), restarts=1, last=ended("OOMKilled", 137, ago_s=3001)), since_s=300),
        State.LOST,
        Failure.STOPPED_ANSWERING,
    ),
    "its image cannot be had for the next start": (
        pod(container({"waiting": {"reason": "ErrImageNeverPull", "message": "not present"}}), since_s=300),
        State.LOST,
        Failure.IMAGE_NOT_ON_SERVER,
    ),
    "evicted for want of memory": (
        pod(**EVICTED, message="The node was low on resource: memory. Threshold quantity: 100Mi."),
        State.LOST,
        Failure.POD_EVICTED,
    ),
    "evicted for its own disk": (
        pod(**EVICTED, message='Usage of EmptyDir volume "tmp" exceeds the limit "64Mi". '),
        State.LOST,
        Failure.OUT_OF_DISK,
    ),
    "preempted": (
        pod(phase="Failed", reason="Preempting", message="Preempted in order to admit critical pod"),
        State.LOST,
        Failure.POD_EVICTED,
    ),
    "ended with its node": (
        pod(phase="Failed", reason="Terminated", message="Pod was terminated in response to node shutdown."),
        State.LOST,
        Failure.POD_EVICTED,
    ),
    "lost with its node": (pod(phase="Failed", reason="NodeLost"), State.LOST, Failure.NODE_AWAY),
    "its node was removed": (
        with_condition(pod(phase="Failed"), type="DisruptionTarget", status="True", reason="DeletionByPodGC"),
        State.LOST,
        Failure.NODE_AWAY,
    ),
    "ended for good": (
        pod(container({"terminated": ended("Error", 3)}), phase="Failed"),
        State.LOST,
        Failure.PROGRAM_ENDED,
    ),
    "ended for good without an error": (
        pod(container({"terminated": ended("Completed", 0)}), phase="Succeeded"),
        State.LOST,
        Failure.PROGRAM_ENDED,
    ),
    "killed for memory for good": (
        pod(container({"terminated": ended("OOMKilled", 137)}), phase="Failed"),
        State.LOST,
        Failure.OUT_OF_MEMORY,
    ),
    "its template's deadline is over": (
        pod(phase="Failed", reason="DeadlineExceeded", message="Pod was active on the node longer"),
        State.LOST,
        Failure.PROGRAM_ENDED,
    ),
    "its node is silent": (
        pod(container(running(), ready=True), since_s=130, containers="True"),
        State.LOST,
        Failure.NODE_AWAY,
    ),
    "its node is silent for a moment": (
        pod(container(running(), ready=True), since_s=30, containers="True"),
        State.UNREADY,
        None,
    ),
    "a readiness gate is shut": (
        pod(
            container(running(), ready=True),
            since_s=130,
            containers="True",
            spec={"readinessGates": [{"conditionType": "example.org/up"}]},
        ),
        State.LOST,
        Failure.STOPPED_ANSWERING,
    ),
    "is being deleted": (pod(metadata={"deletionTimestamp": ago(-20)}), State.GOING, None),
    "has ended while it is deleted": (
        pod(**EVICTED, metadata={"deletionTimestamp": ago(10)}),
        State.GOING,
        None,
    ),
    "its deletion hangs": (pod(metadata={"deletionTimestamp": ago(61)}), State.LOST, Failure.POD_GONE),
    "its deletion hangs because its node is away": (
        pod(
            container(running(), ready=True), since_s=400, containers="True",
            metadata={"deletionTimestamp": ago(61)},
        ),
        State.LOST,
        Failure.NODE_AWAY,
    ),
    "is deleted from a node that does not answer": (
        with_condition(
            pod(metadata={"deletionTimestamp": ago(61)}),
            type="DisruptionTarget", status="True", reason="DeletionByTaintManager",
        ),
        State.LOST,
        Failure.NODE_AWAY,
    ),
    "no kubelet has seen it": (
        {"metadata": {"name": "x", "creationTimestamp": ago(200)}, "status": {"phase": "Pending"}},
        State.LOST,
        Failure.POD_GONE,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("made", "state", "failure"), TABLE.values(), ids=TABLE)
def test_a_pod_is_judged(made: Manifest, state: State, failure: Failure | None) -> None:
    status = running_status(made, NOW, SETTINGS)
    assert (status.state, status.failure) == (state, failure)
    assert bool(status.evidence) == (state is State.LOST)


@pytest.mark.parametrize("name", [name for name, (_, _, failure) in TABLE.items() if failure])
def test_a_lost_pod_gives_a_sentence_that_is_final(name: str) -> None:
    error = running_status(TABLE[name][0], NOW, SETTINGS).error()
    assert not error.failure.retry
    assert "{" not in error.sentence
    assert error.evidence


def test_a_pod_that_can_be_used_has_no_error() -> None:
    with pytest.raises(ValueError, match="the Pod is ready"):
        PodStatus(State.READY).error()


def test_when_a_ready_pod_lacked_memory_is_kept() -> None:
    last = ended("OOMKilled", 137, ago_s=60)
    status = running_status(
        pod(container(running(59), ready=True, restarts=1, last=last), ready="True"), NOW, SETTINGS
    )
    assert (status.state, status.killed_at) == (State.READY, NOW - timedelta(seconds=60))
    assert running_status(READY, NOW, SETTINGS).killed_at is None


def test_the_sentence_names_the_image_of_the_container_that_failed() -> None:
    sidecar = {**container(BACK_OFF, restarts=5, last=ended("Error", 1)), "name": "proxy"}
    made = pod(container(running(), ready=True), sidecar)
    made["spec"]["containers"].append({"name": "proxy", "image": "proxy:1"})
    error = running_status(made, NOW, SETTINGS).error()
    assert (error.failure, '"proxy:1"' in error.sentence) == (Failure.PROGRAM_CRASHES, True)


def test_evidence_says_what_was_seen_and_for_how_long() -> None:
    evidence = running_status(TABLE["backs off, at the limit"][0], NOW, SETTINGS).evidence
    assert evidence == "container lab waiting CrashLoopBackOff/Error, exit code 1"
    evidence = running_status(TABLE["not ready for too long"][0], NOW, SETTINGS).evidence
    assert evidence.startswith("not Ready for 121 s; container lab running")


@pytest.mark.parametrize(
    ("dated_s", "written_s", "lost"),
    [
        (155, 5, False),  # a node 2.5 minutes behind, at the first blip
        (280, 130, True),
        (5, 125, True),  # a node two minutes ahead
        (-60, 60, False),
        (125, 125, True),  # a right one
        (3600, 5, True),  # more than a clock can be wrong: the last write dated nothing
    ],
)
def test_a_pod_is_not_ready_for_as_long_as_the_api_servers_clock_says(
    dated_s: float, written_s: float, lost: bool
) -> None:
    made = pod(container(running(), ready=False), since_s=dated_s)
    made["metadata"]["managedFields"] = [
        {"manager": "job", "operation": "Update", "time": ago(0)},
        {"manager": "kubelet", "subresource": "status", "time": ago(written_s)},
        {"manager": "other", "subresource": "status"},
    ]
    made["status"]["startTime"] = ago(3600)
    assert (running_status(made, NOW, SETTINGS).state is State.LOST) == lost
