"""What kubelets, registries, schedulers and API servers really say -> the row of the table.

Those of Kubernetes 1.34 and containerd 1.6 were seen, and tests/cluster/test_failure_causes.py brings most of
them about; those of containerd 2 and of CRI-O are as their users report them.
"""

from __future__ import annotations

from typing import Any

import pytest

from jobs.cluster.client import ApiError, api_failure
from jobs.cluster.pod_status import late_status, starting_status
from jobs.failures import Failure

IMAGE = "registry.example/forbidden/denied:not-found"
_RESOLVE = f'failed to pull and unpack image "{IMAGE}": failed to resolve reference "{IMAGE}": '
_HEAD = 'failed to do request: Head "https://registry.example/v2/forbidden/denied/manifests/not-found": '

HOPELESS = {
    "containerd, 404": f"rpc error: code = NotFound desc = {_RESOLVE}{IMAGE}: not found",
    "containerd, 401": f"{_RESOLVE}pulling from host registry.example failed with status code"
    " [manifests not-found]: 401 Unauthorized",
    "containerd, 403": f"{_RESOLVE}unexpected status from HEAD request to https://registry.example/v2/x:"
    " 403 Forbidden",
    "containerd, no token": f"{_RESOLVE}failed to authorize: failed to fetch anonymous token:"
    " unexpected status: 401 Unauthorized",
    "containerd, Docker Hub": f"{_RESOLVE}pull access denied, repository does not exist or may require"
    " authorization: server message: insufficient_scope: authorization failed",
    "containerd, no such host": f"{_RESOLVE}{_HEAD}dial tcp: lookup registry.example on 10.0.0.2:53:"
    " no such host",
    "CRI-O, no manifest": f"initializing source docker://{IMAGE}: reading manifest not-found in"
    " registry.example/forbidden/denied: manifest unknown",
    "CRI-O, private": f"initializing source docker://{IMAGE}: reading manifest not-found in"
    " registry.example/forbidden/denied: denied: requested access to the resource is denied",
    "CRI-O, wrong password": "unable to retrieve auth token: invalid username/password: unauthorized:"
    " HTTP Basic: Access denied",
    "a page of a proxy": f"rpc error: code = NotFound desc = {_RESOLVE}unexpected media type text/html for"
    " sha256:95e4: not found",
    "an unsigned image": f'Back-off pulling image "{IMAGE}": SignatureValidationFailed: image pull failed'
    f" for {IMAGE} because the signature validation failed",
}
AWAY = {
    "refused": f"{_RESOLVE}{_HEAD}dial tcp 192.0.2.1:443: connect: connection refused",
    "no answer": f"{_RESOLVE}{_HEAD}dial tcp 192.0.2.1:443: i/o timeout",
    "DNS is away": f"{_RESOLVE}{_HEAD}dial tcp: lookup denied.example on 10.0.0.2:53: server misbehaving",
    "503": f"{_RESOLVE}pulling from host unauthorized.example failed with status code"
    " [manifests forbidden]: 503 Service Unavailable",
    "429": f"{_RESOLVE}unexpected status from HEAD request to https://registry.example/v2/denied/x:"
    " 429 Too Many Requests",
    "a certificate of nobody": f"{_RESOLVE}{_HEAD}x509: certificate signed by unknown authority",
    "CRI-O": f"RegistryUnavailable: image pull failed for {IMAGE} because the registry is unavailable.",
}


def _pod(*containers: dict[str, Any], **status: Any) -> dict[str, Any]:
    return {"status": {"phase": "Pending", "containerStatuses": [*containers], **status}}


def _waiting(reason: str, message: str = "", *, ended: str = "") -> dict[str, Any]:
    last = {"lastState": {"terminated": {"reason": ended, "exitCode": 1}}} if ended else {}
    return {"state": {"waiting": {"reason": reason, "message": message}}, **last}


def _failure_of(pod: dict[str, Any]) -> Failure | None:
    return starting_status(pod, IMAGE).failure


@pytest.mark.parametrize("said", HOPELESS.values(), ids=HOPELESS)
def test_a_pull_that_no_other_will_do_better_than_fails_at_once(said: str) -> None:
    backed_off = f'Back-off pulling image "{IMAGE}": ErrImagePull: {said}'
    assert _failure_of(_pod(_waiting("ErrImagePull", said))) is Failure.IMAGE_NOT_LOADABLE
    assert _failure_of(_pod(_waiting("ImagePullBackOff", backed_off))) is Failure.IMAGE_NOT_LOADABLE


@pytest.mark.parametrize("said", AWAY.values(), ids=AWAY)
def test_a_registry_that_is_away_is_asked_again_whatever_the_image_is_called(said: str) -> None:
    backed_off = f'Back-off pulling image "{IMAGE}": ErrImagePull: {said}'
    assert _failure_of(_pod(_waiting("ErrImagePull", said))) is None
    assert _failure_of(_pod(_waiting("ImagePullBackOff", backed_off))) is Failure.REGISTRY_AWAY


@pytest.mark.parametrize(
    ("container", "failure"),
    [
        (_waiting("SignatureValidationFailed"), Failure.IMAGE_NOT_LOADABLE),
        (_waiting("CrashLoopBackOff", "back-off 10s", ended="Error"), Failure.PROGRAM_ENDS),
        (_waiting("CrashLoopBackOff", "back-off 10s", ended="Completed"), Failure.PROGRAM_ENDS),
        (_waiting("CrashLoopBackOff", "back-off 10s", ended="OOMKilled"), Failure.OUT_OF_MEMORY),
        (_waiting("CrashLoopBackOff", "back-off 10s", ended="StartError"), Failure.PROGRAM_NOT_STARTED),
        (
            _waiting(
                "RunContainerError",
                "failed to create containerd task: failed to create shim task: OCI runtime create failed:"
                ' runc create failed: unable to start container process: exec: "/no/such": stat /no/such:'
                " no such file or directory: unknown",
                ended="StartError",
            ),
            Failure.PROGRAM_NOT_STARTED,
        ),
        (
            _waiting(
                "CreateContainerConfigError",
                "container has runAsNonRoot and image will run as root (pod:"
                ' "lab_labs(c5c2)", container: lab)',
            ),
            Failure.CONTAINER_NOT_ALLOWED,
        ),
        (
            _waiting(
                "CreateContainerConfigError",
                "container has runAsNonRoot and image has non-numeric user (app), cannot verify user is"
                " non-root",
            ),
            Failure.CONTAINER_NOT_ALLOWED,
        ),
        (
            _waiting("CreateContainerConfigError", 'secret "registry" not found'),
            Failure.TEMPLATE_INVALID,
        ),
        (
            _waiting("CreateContainerConfigError", "couldn't find key x in ConfigMap labs/y"),
            Failure.TEMPLATE_INVALID,
        ),
        (
            _waiting("CreateContainerError", "failed to generate container spec: no command specified"),
            Failure.CONTAINER_NOT_CREATED,
        ),
        (
            _waiting("CreateContainerError", "context deadline exceeded"),
            None,
        ),
    ],
)
def test_what_a_kubelet_says_of_a_container(container: dict[str, Any], failure: Failure | None) -> None:
    assert _failure_of(_pod(container)) is failure


@pytest.mark.parametrize(
    ("reason", "said", "failure"),
    [
        ("Evicted", 'Usage of EmptyDir volume "tmp" exceeds the limit "64Mi". ', Failure.OUT_OF_DISK),
        (
            "Evicted",
            "Pod ephemeral local storage usage exceeds the total limit of containers 64Mi. ",
            Failure.OUT_OF_DISK,
        ),
        ("Evicted", 'Container lab exceeded its local ephemeral storage limit "64Mi". ', Failure.OUT_OF_DISK),
        ("Evicted", "The node was low on resource: ephemeral-storage. ", Failure.NODE_ENDED_IT),
        ("OutOfcpu", "Pod was rejected: Node didn't have enough resource: cpu", Failure.NODE_ENDED_IT),
        ("Terminated", "Pod was terminated in response to imminent node shutdown.", Failure.NODE_ENDED_IT),
        ("", "", Failure.PROGRAM_ENDS),
    ],
)
def test_what_a_kubelet_says_of_a_pod_that_is_over(reason: str, said: str, failure: Failure) -> None:
    ended = {"state": {"terminated": {"reason": "Error", "exitCode": 1}}}
    assert _failure_of(_pod(ended, phase="Failed", reason=reason, message=said)) is failure


@pytest.mark.parametrize(
    ("said", "failure"),
    [
        ("0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available", Failure.NO_ROOM),
        ("0/3 nodes are available: 1 node(s) had untolerated taint {x: }, 2 Too many pods.", Failure.NO_ROOM),
        (
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. no new claims to"
            " deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
            Failure.NO_FITTING_SERVER,
        ),
        (
            "0/2 nodes are available: 2 node(s) had untolerated taint {node.kubernetes.io/unreachable: }.",
            Failure.NO_FITTING_SERVER,
        ),
    ],
)
def test_what_the_scheduler_says(said: str, failure: Failure) -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}
    assert late_status({"status": {"conditions": [condition]}}, IMAGE, 60).failure is failure


@pytest.mark.parametrize(
    ("status", "said", "failure"),
    [
        (403, 'pods "lab" is forbidden: exceeded quota: labs, requested: pods=1, used: pods=5,'
              " limited: pods=5", Failure.QUOTA_EXCEEDED),
        (403, 'pods "lab" is forbidden: failed quota: labs: must specify limits.cpu for: lab',
         Failure.CLUSTER_REFUSES_LAB),
        (403, 'pods "lab" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi',
         Failure.CLUSTER_REFUSES_LAB),
        (403, 'pods "lab" is forbidden: unable to create new content in namespace labs because it is being'
              " terminated", Failure.CLUSTER_REFUSES_LAB),
        (403, 'pods "lab" is forbidden: User "system:serviceaccount:platform:celery-workers-sa" cannot get'
              ' resource "pods" in API group "" in the namespace "labs"', Failure.CLUSTER_REFUSES_ACCESS),
        (403, 'pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace'
              ' "labs"', Failure.CLUSTER_REFUSES_ACCESS),
        (403, 'networkpolicies.networking.k8s.io "lab" is forbidden: User "x" cannot create resource'
              ' "networkpolicies" in API group "networking.k8s.io" in the namespace "labs"',
         Failure.CLUSTER_REFUSES_ACCESS),
        # Admission repeats what it refuses.
        (403, 'pods "lab" is forbidden: ValidatingAdmissionPolicy "x" denied request: labs may not use'
              ' a: User "x" cannot get resource "pods"', Failure.CLUSTER_REFUSES_LAB),
        (403, 'pods "lab" is forbidden: ValidatingAdmissionPolicy "x" denied request: exceeded quota',
         Failure.CLUSTER_REFUSES_LAB),
        (409, 'Operation cannot be fulfilled on resourcequotas "labs": the object has been modified',
         Failure.CHANGED_MEANWHILE),
        (404, 'namespaces "labs" not found', Failure.CLUSTER_REFUSES_LAB),
        (400, 'Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown field "spec.x"',
         Failure.CLUSTER_REFUSES_LAB),
        (500, "failed to create typed patch object (labs/lab; /v1, Kind=Pod): .spec.x: field not declared in"
              " schema", Failure.CLUSTER_REFUSES_LAB),
    ],
)  # fmt: skip
def test_what_the_api_server_says(status: int, said: str, failure: Failure) -> None:
    assert api_failure(ApiError(status, "", said)).failure is failure
