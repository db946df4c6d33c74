from __future__ import annotations

import time
from typing import Any

import pytest

from jobs.cluster.client import ApiError, ApiUnavailable, api_failure
from jobs.cluster.pod_fields import State
from jobs.cluster.pod_status import FATAL_WAITING, late_status, starting_status
from jobs.errors import JobError
from jobs.failures import Failure

IMAGE = "registry.example/lab:{1}"


def waiting(
    reason: str, message: str = "", *, init: bool = False, image: str | None = None, **container: Any
) -> dict[str, Any]:
    """Return a Pod with a container that waits; `image` and `container` are of its spec."""
    states = [{"name": "c", "state": {"waiting": {"reason": reason, "message": message}}}]
    status = {"phase": "Pending", "initContainerStatuses" if init else "containerStatuses": states}
    spec = {"name": "c", "image": image or IMAGE, **container}
    return {"spec": {"initContainers" if init else "containers": [spec]}, "status": status}


def failure_of(pod: dict[str, Any]) -> Failure | None:
    status = starting_status(pod, IMAGE)
    assert (status.failure is None) == (status.state is State.UNREADY)
    return status.failure


def error_of(pod: dict[str, Any]) -> JobError:
    return starting_status(pod, IMAGE).error()


@pytest.mark.parametrize("init", [False, True], ids=["container", "init container"])
@pytest.mark.parametrize("reason", sorted(FATAL_WAITING))
def test_every_fatal_reason_has_its_failure_and_names_the_image(reason: str, init: bool) -> None:
    error = error_of(waiting(reason, "the kubelet's words", init=init))
    assert error.failure is FATAL_WAITING[reason]
    assert IMAGE in error.sentence
    assert error.evidence == f"{reason}: the kubelet's words"


SIDECAR = "registry.example/platform/proxy:2"


@pytest.mark.parametrize("init", [False, True], ids=["sidecar", "init container"])
@pytest.mark.parametrize("reason", sorted(FATAL_WAITING))
def test_a_container_of_the_template_that_fails_is_the_administrators(reason: str, init: bool) -> None:
    error = error_of(waiting(reason, "words", init=init, image=SIDECAR))
    assert error.failure is Failure.TEMPLATE_INVALID
    assert error.evidence == f"container c of the template, image {SIDECAR}: {reason}: words"
    assert IMAGE not in error.sentence


def test_an_image_of_the_template_that_is_not_loaded_is_named_as_such() -> None:
    gone = error_of(waiting("ErrImagePull", "not found", image=SIDECAR))
    away = error_of(waiting("ImagePullBackOff", "i/o timeout", image=SIDECAR))
    assert (gone.failure, away.failure) == (Failure.TEMPLATE_INVALID, Failure.REGISTRY_AWAY)
    assert SIDECAR in away.sentence


def test_a_template_may_put_a_mirror_before_the_image() -> None:
    assert failure_of(waiting("CrashLoopBackOff", image=f"mirror.example/{IMAGE}")) is Failure.PROGRAM_ENDS


@pytest.mark.parametrize(
    ("lab", "sidecar", "failure"),
    [
        (0, 1, Failure.TEMPLATE_INVALID),
        (1, 143, Failure.PROGRAM_ENDS),
        (None, 137, Failure.TEMPLATE_INVALID),
        (0, 0, Failure.PROGRAM_ENDS),
        (137, 1, Failure.OUT_OF_MEMORY),
    ],
)
def test_a_pod_that_ended_failed_by_the_lab_before_its_sidecar(
    lab: int | None, sidecar: int, failure: Failure
) -> None:
    specs = {
        "initContainers": [{"name": "proxy", "image": SIDECAR}],
        "containers": [{"name": "lab", "image": IMAGE}],
    }
    ended = {"name": "proxy", "state": {"terminated": {"exitCode": sidecar, "reason": "Error"}}}
    state = {"waiting": {"reason": "PodInitializing"}} if lab is None else {"terminated": {"exitCode": lab}}
    statuses = {
        "initContainerStatuses": [ended],
        "containerStatuses": [{"name": "lab", "state": state}],
    }
    error = error_of({"spec": specs, "status": {"phase": "Failed", **statuses}})
    assert error.failure is failure
    if failure is Failure.TEMPLATE_INVALID:
        assert error.evidence.endswith(
            f"container proxy of the template, image {SIDECAR}: phase Failed: Error, exit code {sidecar}"
        )


@pytest.mark.parametrize("unready", ["lab", "proxy"])
def test_who_does_not_answer_is_blamed(unready: str) -> None:
    images = {"lab": IMAGE, "proxy": SIDECAR}
    statuses = [{"name": name, "ready": name != unready, "state": {"running": {}}} for name in images]
    pod = {
        "spec": {"containers": [{"name": name, "image": image} for name, image in images.items()]},
        "status": {"phase": "Running", "containerStatuses": statuses},
    }
    expected = Failure.DOES_NOT_ANSWER if unready == "lab" else Failure.TEMPLATE_INVALID
    assert late_status(pod, IMAGE, 60).failure is expected


@pytest.mark.parametrize("piece", ["a", "[", '"', ".", "[a", "a b", '" [', "not found[", "\n", 'secret "'])
@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError"])
def test_a_long_message_of_the_kubelet_takes_no_time(reason: str, piece: str) -> None:
    pod = waiting(reason, piece * (65_536 // len(piece)))
    started = time.process_time()
    starting_status(pod, IMAGE)
    # Here 0.02 s; what is quadratic takes seconds.
    assert time.process_time() - started < 0.25


@pytest.mark.parametrize("reason", sorted(FATAL_WAITING))
def test_a_container_runtime_that_is_slow_is_no_failure_of_the_image(reason: str) -> None:
    message = "rpc error: code = DeadlineExceeded desc = context Deadline Exceeded"
    assert failure_of(waiting(reason, message)) is None
    assert failure_of(waiting(reason, "exec format error")) is FATAL_WAITING[reason]


PULL_MESSAGES = pytest.mark.parametrize(
    ("message", "hopeless"),
    [
        ('failed to resolve reference "x": not found', True),
        ("dial tcp: lookup registry.example on 10.0.0.2:53: no such host", True),
        ("pull access DENIED", True),
        ("401 Unauthorized", True),
        ("403 Forbidden", True),
        ("repository does not exist", True),
        ("dial tcp: i/o timeout", False),
        ("503 Service Unavailable", False),
        ("context deadline exceeded", False),
        ("", False),
    ],
)


@PULL_MESSAGES
def test_a_first_failed_pull_is_final_only_if_the_registry_says_so(message: str, hopeless: bool) -> None:
    failure = failure_of(waiting("ErrImagePull", message))
    assert failure is (Failure.IMAGE_NOT_LOADABLE if hopeless else None)


@PULL_MESSAGES
def test_a_pull_that_failed_twice_is_the_images_fault_only_if_the_registry_says_so(
    message: str, hopeless: bool
) -> None:
    error = error_of(waiting("ImagePullBackOff", message))
    assert IMAGE in error.sentence
    assert error.evidence == f"ImagePullBackOff: {message}"
    assert error.failure is (Failure.IMAGE_NOT_LOADABLE if hopeless else Failure.REGISTRY_AWAY)


@pytest.mark.parametrize(
    "pod", [{}, {"status": {}}, waiting("ContainerCreating"), waiting("PodInitializing")]
)
def test_a_pod_that_still_starts_is_no_failure(pod: dict[str, Any]) -> None:
    assert failure_of(pod) is None


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_a_pod_that_ended_by_itself_is_a_failure_of_its_image(phase: str) -> None:
    error = error_of({"status": {"phase": phase, "message": "bye"}})
    assert (error.failure, error.evidence) == (Failure.PROGRAM_ENDS, f"phase {phase} bye")


OUT_OF_MEMORY = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}


@pytest.mark.parametrize(
    "status",
    [
        {"phase": "Failed", "containerStatuses": [{"state": OUT_OF_MEMORY}]},
        {
            "phase": "Running",
            "containerStatuses": [
                {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": OUT_OF_MEMORY}
            ],
        },
    ],
    ids=["ended", "crash loop"],
)
def test_a_program_that_the_kernel_ended_for_its_memory_is_told_so(status: dict[str, Any]) -> None:
    assert failure_of({"status": status}) is Failure.OUT_OF_MEMORY


@pytest.mark.parametrize("kind", ["containers", "initContainers"])
@pytest.mark.parametrize(
    ("spec", "failure"),
    [
        ({"readinessProbe": {}}, Failure.OUT_OF_MEMORY),
        ({"lifecycle": {"preStop": {}}}, Failure.OUT_OF_MEMORY),
        ({"livenessProbe": {}}, Failure.PROGRAM_ENDS),
        ({"startupProbe": {}}, Failure.PROGRAM_ENDS),
        ({"lifecycle": {"postStart": {}}}, Failure.PROGRAM_ENDS),
    ],
    ids=str,
)
def test_a_program_that_was_killed_lacked_memory_unless_the_kubelet_killed_it(
    spec: dict[str, Any], failure: Failure, kind: str
) -> None:
    pod = waiting("CrashLoopBackOff", init=kind == "initContainers", **spec)
    (statuses,) = (value for key, value in pod["status"].items() if key != "phase")
    statuses[0]["lastState"] = {"terminated": {"reason": "Error", "exitCode": 137}}
    assert failure_of(pod) is failure
    statuses[0]["lastState"]["terminated"]["reason"] = "OOMKilled"
    assert failure_of(pod) is Failure.OUT_OF_MEMORY


@pytest.mark.parametrize("reason", ["Evicted", "OutOfcpu", "NodeShutdown", "UnexpectedAdmissionError"])
def test_a_pod_that_its_node_ended_is_tried_again(reason: str) -> None:
    pod = {"status": {"phase": "Failed", "reason": reason, "message": "disk"}}
    error = error_of(pod)
    assert (error.failure, error.evidence) == (Failure.NODE_ENDED_IT, f"phase Failed {reason} disk")


@pytest.mark.parametrize("reason", ["DeletionByTaintManager", "DeletionByPodGC"])
def test_a_pod_whose_node_is_gone_is_tried_again(reason: str) -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": reason}
    ended = {"name": "c", "state": {"terminated": {"exitCode": 143}}}
    status = {"phase": "Failed", "conditions": [condition], "containerStatuses": [ended]}
    assert failure_of({"status": status}) is Failure.NODE_ENDED_IT


def unschedulable(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"status": {"phase": "Pending", "conditions": [condition]}}


RUNNING = {"state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
ENDED = {"state": {"terminated": {"exitCode": 1}}}


@pytest.mark.parametrize(
    ("pod", "failure", "evidence"),
    [
        (unschedulable("0/3 nodes are available: 3 Insufficient cpu."), Failure.NO_ROOM,
         "after 60 s: Unschedulable: 0/3 nodes are available: 3 Insufficient cpu."),
        (unschedulable("0/1 nodes are available: 1 Too many pods."), Failure.NO_ROOM,
         "after 60 s: Unschedulable: 0/1 nodes are available: 1 Too many pods."),
        (unschedulable("0/1 nodes are available: 1 node(s) had untolerated taint"), Failure.NO_FITTING_SERVER,
         "after 60 s: Unschedulable: 0/1 nodes are available: 1 node(s) had untolerated taint"),
        (waiting("ContainerCreating"), Failure.SLOW_START, "after 60 s: ContainerCreating: "),
        ({"status": {"phase": "Running", "containerStatuses": [RUNNING]}}, Failure.DOES_NOT_ANSWER,
         "not Ready after 60 s"),
        ({"status": {"phase": "Running", "containerStatuses": [ENDED]}}, Failure.SLOW_START,
         "after 60 s: no container runs"),
        ({"status": {"phase": "Pending"}}, Failure.SLOW_START, "after 60 s: no container runs"),
        ({}, Failure.SLOW_START, "after 60 s: no container runs"),
    ],
    ids=["no cpu", "no place", "taint", "still creating", "runs but is not ready", "between restarts",
         "pending", "no status"],
)  # fmt: skip
def test_a_pod_that_is_late_fails_by_what_was_seen_last(
    pod: dict[str, Any], failure: Failure, evidence: str
) -> None:
    error = late_status(pod, IMAGE, 60).error()
    assert (error.failure, error.evidence) == (failure, evidence)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ApiUnavailable("x"), Failure.CLUSTER_AWAY),
        (ApiError(403, "Forbidden", 'pods "x" is forbidden: exceeded quota: labs, requested: pods=1'),
         Failure.QUOTA_EXCEEDED),
        (ApiError(409, "Conflict", "Apply failed with 1 conflict"), Failure.CHANGED_MEANWHILE),
        (ApiError(401, "Unauthorized", "Unauthorized"), Failure.CLUSTER_REFUSES_ACCESS),
        (ApiError(403, "Forbidden", 'pods is forbidden: User "x" cannot list resource "pods"'),
         Failure.CLUSTER_REFUSES_ACCESS),
        (ApiError(403, "Forbidden", 'pods "x" is forbidden: violates PodSecurity "restricted:latest"'),
         Failure.CLUSTER_REFUSES_LAB),
        (ApiError(403, "Forbidden", 'pods "cannot run" is forbidden: a lab cannot do this'),
         Failure.CLUSTER_REFUSES_LAB),
        (ApiError(400, "BadRequest", "unknown field"), Failure.CLUSTER_REFUSES_LAB),
        (ApiError(404, "NotFound", 'namespaces "labs" not found'), Failure.CLUSTER_REFUSES_LAB),
        (ApiError(422, "Invalid", "spec"), Failure.CLUSTER_REFUSES_LAB),
    ],
    ids=str,
)  # fmt: skip
def test_every_api_error_has_its_failure(error: ApiError | ApiUnavailable, failure: Failure) -> None:
    job_error = api_failure(error)
    assert (job_error.failure, job_error.evidence) == (failure, str(error))
