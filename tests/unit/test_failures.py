from __future__ import annotations

from typing import Any

import pytest

from jobs import failures
from jobs.cluster import ApiError, ApiUnavailable
from jobs.errors import Category, JobError, PermanentError, TransientError

IMAGE = "registry.example/lab:{1}"
IMAGE_ERROR = Category.PERMANENT_IMAGE_ERROR


def waiting(reason: str, message: str = "", *, init: bool = False) -> dict[str, Any]:
    states = [{"state": {"waiting": {"reason": reason, "message": message}}}]
    return {"status": {"phase": "Pending", "initContainerStatuses" if init else "containerStatuses": states}}


@pytest.mark.parametrize("init", [False, True], ids=["container", "init container"])
@pytest.mark.parametrize("reason", sorted(failures._FATAL_WAITING))
def test_every_fatal_reason_is_permanent_and_tells_the_teacher_about_the_image(
    reason: str, init: bool
) -> None:
    error = failures.fatal_pod_error(waiting(reason, "kubelet says: not found", init=init), IMAGE)
    assert isinstance(error, PermanentError)
    assert error.category is IMAGE_ERROR
    assert IMAGE in error.sentence
    assert "teacher" in error.sentence
    assert error.evidence == f"{reason}: kubelet says: not found"


@pytest.mark.parametrize("reason", sorted(set(failures._FATAL_WAITING) - {"ImagePullBackOff"}))
def test_a_container_runtime_that_is_slow_is_no_failure_of_the_image(reason: str) -> None:
    message = "rpc error: code = DeadlineExceeded desc = context Deadline Exceeded"
    assert failures.fatal_pod_error(waiting(reason, message), IMAGE) is None
    assert failures.fatal_pod_error(waiting(reason, "exec format error"), IMAGE) is not None


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
    error = failures.fatal_pod_error(waiting("ErrImagePull", message), IMAGE)
    if hopeless:
        assert type(error) is PermanentError
        assert (error.category, error.evidence) == (IMAGE_ERROR, f"ErrImagePull: {message}")
    else:
        assert error is None


@PULL_MESSAGES
def test_a_pull_that_failed_twice_is_the_images_fault_only_if_the_registry_says_so(
    message: str, hopeless: bool
) -> None:
    error = failures.fatal_pod_error(waiting("ImagePullBackOff", message), IMAGE)
    assert error is not None
    assert IMAGE in error.sentence
    assert error.evidence == f"ImagePullBackOff: {message}"
    if hopeless:
        assert (type(error), error.category) == (PermanentError, IMAGE_ERROR)
        assert "teacher" in error.sentence
    else:
        assert (type(error), error.category) == (TransientError, Category.TEMPORARY_NETWORK_ERROR)
        assert "teacher" not in error.sentence


@pytest.mark.parametrize(
    "pod", [{}, {"status": {}}, waiting("ContainerCreating"), waiting("PodInitializing")]
)
def test_a_pod_that_still_starts_is_no_failure(pod: dict[str, Any]) -> None:
    assert failures.fatal_pod_error(pod, IMAGE) is None


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_a_pod_that_ended_by_itself_is_a_failure_of_its_image(phase: str) -> None:
    error = failures.fatal_pod_error({"status": {"phase": phase, "message": "bye"}}, IMAGE)
    assert type(error) is PermanentError
    assert error.category is IMAGE_ERROR
    assert error.evidence == f"phase {phase}  bye"


@pytest.mark.parametrize("reason", ["Evicted", "OutOfcpu", "NodeShutdown", "UnexpectedAdmissionError"])
def test_a_pod_that_its_node_ended_is_tried_again(reason: str) -> None:
    pod = {"status": {"phase": "Failed", "reason": reason, "message": "disk"}}
    error = failures.fatal_pod_error(pod, IMAGE)
    assert type(error) is TransientError
    assert error.category is Category.TEMPORARY_RESOURCE_ERROR
    assert error.evidence == f"phase Failed {reason} disk"
    assert "teacher" not in error.sentence


RUNNING = {"state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
ENDED = {"state": {"terminated": {"exitCode": 1}}}
UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available",
}


@pytest.mark.parametrize(
    ("pod", "kind", "category", "evidence"),
    [
        ({"status": {"conditions": [UNSCHEDULABLE]}}, TransientError, Category.TEMPORARY_RESOURCE_ERROR,
         "after 60 s: Unschedulable: 0/3 nodes are available"),
        (waiting("ContainerCreating"), TransientError, Category.TEMPORARY_RESOURCE_ERROR,
         "after 60 s: ContainerCreating: "),
        ({"status": {"phase": "Running", "containerStatuses": [RUNNING]}}, PermanentError, IMAGE_ERROR,
         "not Ready after 60 s"),
        ({"status": {"phase": "Running", "containerStatuses": [ENDED]}}, TransientError,
         Category.TEMPORARY_RESOURCE_ERROR, "after 60 s: no container runs"),
        ({"status": {"phase": "Pending"}}, TransientError, Category.TEMPORARY_RESOURCE_ERROR,
         "after 60 s: no container runs"),
        ({}, TransientError, Category.TEMPORARY_RESOURCE_ERROR, "after 60 s: no container runs"),
    ],
    ids=["unschedulable", "still creating", "runs but is not ready", "between restarts", "pending",
         "no status"],
)  # fmt: skip
def test_a_pod_that_is_late_fails_by_what_was_seen_last(
    pod: dict[str, Any], kind: type[JobError], category: Category, evidence: str
) -> None:
    error = failures.not_ready_error(pod, IMAGE, 60)
    assert type(error) is kind
    assert (error.category, error.evidence) == (category, evidence)


@pytest.mark.parametrize(
    ("error", "kind", "category"),
    [
        (ApiUnavailable("x"), TransientError, Category.TEMPORARY_NETWORK_ERROR),
        (ApiError(403, "Forbidden", 'pods "x" is forbidden: exceeded quota: labs, requested: pods=1'),
         TransientError, Category.TEMPORARY_RESOURCE_ERROR),
        (ApiError(409, "Conflict", "Apply failed with 1 conflict"),
         TransientError, Category.TEMPORARY_RESOURCE_ERROR),
        (ApiError(401, "Unauthorized", "Unauthorized"), PermanentError, Category.PERMANENT_PERMISSION_ERROR),
        (ApiError(403, "Forbidden", 'pods is forbidden: User "x" cannot list resource "pods"'),
         PermanentError, Category.PERMANENT_PERMISSION_ERROR),
        (ApiError(403, "Forbidden", 'pods "x" is forbidden: violates PodSecurity "restricted:latest"'),
         PermanentError, Category.PERMANENT_INVALID_REQUEST),
        (ApiError(400, "BadRequest", "unknown field"), PermanentError, Category.PERMANENT_INVALID_REQUEST),
        (ApiError(404, "NotFound", 'namespaces "labs" not found'),
         PermanentError, Category.PERMANENT_INVALID_REQUEST),
        (ApiError(422, "Invalid", "spec"), PermanentError, Category.PERMANENT_INVALID_REQUEST),
    ],
    ids=str,
)  # fmt: skip
def test_every_api_error_has_its_category(
    error: ApiError | ApiUnavailable, kind: type[JobError], category: Category
) -> None:
    job_error = failures.api_error(error)
    assert type(job_error) is kind
    assert (job_error.category, job_error.evidence) == (category, str(error))


def test_the_evidence_is_bounded() -> None:
    assert len(PermanentError(IMAGE_ERROR, "s", evidence="x" * 10_000).evidence) == 2000
