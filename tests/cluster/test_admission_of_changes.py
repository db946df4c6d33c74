"""What else the API server lets the job's ServiceAccount do: with Services, NetworkPolicies, Pods that run.

Dry runs of the server go through admission as real requests do, and leave nothing behind.
"""

from __future__ import annotations

import argparse
import copy
import json
import secrets
from collections.abc import Iterator

import pytest

from jobs.cluster.client import ApiError, Cluster
from jobs.config.manifests import LabManifests, selecting
from jobs.config.naming import OBJECT
from tests.support.cluster.admission import (
    JOB,
    Change,
    Manifest,
    apply,
    as_job,
    dry_run,
    kubectl,
    refusal,
    refusal_of_change,
)


@pytest.fixture(scope="module")
def job() -> Cluster:
    return as_job()


@pytest.fixture
def network_policy(manifests: LabManifests) -> Iterator[Manifest]:
    """A lab's policy as the job made it; an object that starts nothing."""
    apply(manifests.network_policy, f"--as={JOB}")
    yield manifests.network_policy
    name = manifests.network_policy["metadata"]["name"]
    kubectl("delete", "networkpolicy", "-n", "labs", name, "--ignore-not-found")


@pytest.fixture
def foreign_service() -> Iterator[Manifest]:
    """A Service in labs that an administrator made."""
    service: Manifest = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"foreign-{secrets.token_hex(4)}", "namespace": "labs"},
        "spec": {"clusterIP": "None", "ports": [{"port": 80}]},
    }
    kubectl("create", "--filename=-", stdin=service)
    yield service
    kubectl("delete", "service", "-n", "labs", service["metadata"]["name"], "--ignore-not-found")


@pytest.fixture
def running_pod(manifests: LabManifests) -> Iterator[str]:
    """The name of a lab's Pod that the job started."""
    name = manifests.pod["metadata"]["name"]
    apply(manifests.pod, f"--as={JOB}")
    yield name
    kubectl("delete", "pod", "-n", "labs", name, "--now", "--wait=false", "--ignore-not-found")


@pytest.fixture
def foreign_pod(manifests: LabManifests) -> Iterator[str]:
    """The name of a Pod in labs that an administrator made, for which there is no scheduler."""
    pod = copy.deepcopy(manifests.pod)
    name = f"foreign-{secrets.token_hex(4)}"
    pod["metadata"] = {"name": name, "namespace": "labs"}
    pod["spec"]["schedulerName"] = "nobody"
    kubectl("create", "--filename=-", stdin=pod)
    yield name
    kubectl("delete", "pod", "-n", "labs", name, "--now", "--wait=false", "--ignore-not-found")


def test_a_right_that_somebody_grants_elsewhere_is_of_no_use(
    job: Cluster, manifests: LabManifests, unguarded_namespace: str
) -> None:
    manifests.service["metadata"]["namespace"] = unguarded_namespace
    assert "jobs work in namespace labs only" in refusal(dry_run(job, manifests.service))


SERVICE_CHANGES: dict[str, tuple[Change, str]] = {
    "on the nodes' ports": (lambda s: s["spec"].update(type="NodePort"), "has type ClusterIP"),
    "a load balancer": (lambda s: s["spec"].update(type="LoadBalancer"), "has type ClusterIP"),
    "a name elsewhere": (
        lambda s: s["spec"].update(type="ExternalName", externalName="example.com"),
        "has type ClusterIP",
    ),
    "an address of somebody else": (
        lambda s: s["spec"].update(externalIPs=["192.0.2.1"]),
        "no external addresses",
    ),
    "the pod of another lab": (
        lambda s: s["spec"].update(selector={"lab_instance_id": "1"}),
        "selects its own lab_instance_id",
    ),
    "no pod": (lambda s: s["spec"].pop("selector"), "selects its own lab_instance_id"),
    "the pod of another lab with this id": (
        lambda s: s["spec"]["selector"].update({OBJECT: "f" * 20}),
        "selects its own autolabs.io/object",
    ),
    "the pods of all labs with this id": (
        lambda s: s["spec"]["selector"].pop(OBJECT),
        "selects its own autolabs.io/object",
    ),
    "an object label of no lab": (
        lambda s: [of.update({OBJECT: "mine"}) for of in (s["metadata"]["labels"], s["spec"]["selector"])],
        "must be 20 hexadecimal digits",
    ),
}


@pytest.mark.parametrize(("change", "reason"), SERVICE_CHANGES.values(), ids=SERVICE_CHANGES)
def test_a_service_that_the_job_should_not_make_is_refused(
    job: Cluster, manifests: LabManifests, change: Change, reason: str
) -> None:
    assert reason in refusal_of_change(job, manifests.service, change)


@pytest.mark.parametrize(
    "selector",
    [{}, {"matchLabels": {"lab_instance_id": "1"}}, {"matchLabels": {"app.kubernetes.io/name": "lab"}}],
    ids=["every lab", "another lab", "all labs by name"],
)
def test_a_network_policy_that_would_open_other_labs_is_refused(
    job: Cluster, manifests: LabManifests, selector: Manifest
) -> None:
    policy = copy.deepcopy(manifests.network_policy)
    policy["spec"]["podSelector"] = selector
    assert "selects its own lab_instance_id" in refusal(dry_run(job, policy))


def test_a_network_policy_that_would_open_another_lab_with_this_id_is_refused(
    job: Cluster, manifests: LabManifests
) -> None:
    del manifests.network_policy["spec"]["podSelector"]["matchLabels"][OBJECT]
    assert "selects its own autolabs.io/object" in refusal(dry_run(job, manifests.network_policy))


@pytest.mark.parametrize("kind", ["pod", "service", "network_policy"])
def test_what_containers_of_the_release_before_make_is_admitted(
    job: Cluster, manifests: LabManifests, kind: str
) -> None:
    del manifests.pod["metadata"]["labels"][OBJECT]
    item = getattr(manifests, kind)
    assert dry_run(job, item if kind == "pod" else selecting(item, manifests.pod)) == ""


def test_an_object_of_the_lab_may_be_changed_and_deleted(job: Cluster, network_policy: Manifest) -> None:
    policy = copy.deepcopy(network_policy)
    policy["metadata"]["annotations"]["seen"] = "again"
    assert dry_run(job, policy) == ""
    name = network_policy["metadata"]["name"]
    kubectl("delete", "networkpolicy", "-n", "labs", name, f"--as={JOB}", "--dry-run=server")


def test_an_object_of_a_lab_under_another_name_may_be_deleted(manifests: LabManifests) -> None:
    stray = copy.deepcopy(manifests.service)
    name = f"stray-{secrets.token_hex(4)}"
    stray["metadata"]["name"] = name
    apply(stray)
    try:
        kubectl("delete", "service", "-n", "labs", name, f"--as={JOB}")
    finally:
        kubectl("delete", "service", "-n", "labs", name, "--ignore-not-found")


def test_an_object_cannot_be_given_to_another_lab(job: Cluster, network_policy: Manifest) -> None:
    policy = copy.deepcopy(network_policy)
    policy["metadata"]["labels"]["lab_instance_id"] = "1"
    assert "denied request: " in refusal(dry_run(job, policy, take_over=True))
    policy = copy.deepcopy(network_policy)
    policy["metadata"]["labels"][OBJECT] = "f" * 20
    policy["spec"]["podSelector"]["matchLabels"][OBJECT] = "f" * 20
    assert "an object of another lab" in refusal(dry_run(job, policy, take_over=True))


def test_what_somebody_else_made_is_neither_taken_over_nor_deleted(
    manifests: LabManifests, foreign_service: Manifest
) -> None:
    name = foreign_service["metadata"]["name"]
    as_job = ("-n", "labs", f"--as={JOB}", "--dry-run=server")
    labels = " ".join(f"{key}={value}" for key, value in manifests.service["metadata"]["labels"].items())
    taken = kubectl("label", "service", name, *labels.split(), *as_job, check=False)
    assert "denied request: " in refusal(taken)
    assert "denied request: " in refusal(kubectl("delete", "service", name, *as_job, check=False))


def test_the_default_deny_policy_cannot_be_removed_by_the_job() -> None:
    said = kubectl(
        "delete",
        "networkpolicy",
        "default-deny",
        "-n",
        "labs",
        f"--as={JOB}",
        "--dry-run=server",
        check=False,
    )
    assert "needs the label lab_instance_id" in refusal(said)


def resize(job: Cluster, pod: str, limits: dict[str, str | None]) -> str:
    """Return how the API server refuses the job a change of what a Pod's container may use, or nothing."""
    change = {"spec": {"containers": [{"name": "lab", "resources": {"limits": limits}}]}}
    try:
        job.patch(f"/api/v1/namespaces/labs/pods/{pod}/resize", change, strategic=True)
    except ApiError as exc:
        return exc.message
    return ""


def test_a_lab_that_runs_may_be_given_other_resources(job: Cluster, running_pod: str) -> None:
    assert resize(job, running_pod, {"cpu": "1", "memory": "1Gi"}) == ""


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"cpu": "5"}, "maximum cpu usage per Container is 4"),
        ({"memory": "9Gi"}, "maximum memory usage per Container is 8Gi"),
    ],
)
def test_a_lab_that_runs_cannot_be_given_its_whole_node(
    job: Cluster, running_pod: str, limits: dict[str, str | None], reason: str
) -> None:
    assert reason in resize(job, running_pod, limits)


@pytest.mark.parametrize("name", ["cpu", "memory"])
def test_a_limit_that_is_taken_away_becomes_the_default(job: Cluster, running_pod: str, name: str) -> None:
    assert resize(job, running_pod, {"cpu": "1", "memory": "1Gi"}) == ""
    assert resize(job, running_pod, {name: None}) == ""
    limits = f"jsonpath={{.spec.containers[0].resources.limits.{name}}}"
    has = kubectl("get", "pod", "-n", "labs", running_pod, "--output", limits)
    assert has == {"cpu": "500m", "memory": "512Mi"}[name]


def test_the_resources_of_somebody_elses_pod_cannot_be_changed(job: Cluster, foreign_pod: str) -> None:
    assert "needs the label lab_instance_id" in resize(job, foreign_pod, {"cpu": "1"})


def test_nobody_starts_another_image_in_labs(manifests: LabManifests) -> None:
    pod = copy.deepcopy(manifests.pod)
    pod["spec"]["containers"][0]["image"] = "docker.io/library/nginx:1"
    assert "labs may not use" in refusal(apply(pod, "--dry-run=server", check=False))


@pytest.mark.parametrize(
    "words",
    [
        "update pods -n labs",
        "deletecollection pods -n labs",
        "create pods --subresource=exec -n labs",
        "create pods --subresource=eviction -n labs",
        "patch pods --subresource=ephemeralcontainers -n labs",
        "update pods --subresource=resize -n labs",
        "patch pods --subresource=resize -n platform",
        "get secrets -n labs",
        "get configmaps -n labs",
        "create serviceaccounts --subresource=token -n labs",
        "create jobs.batch -n labs",
        "create rolebindings.rbac.authorization.k8s.io -n labs",
        "patch namespaces",
        "list nodes",
        "list pods --all-namespaces",
        "create pods -n platform",
        "get secrets -n platform",
    ],
)
def test_the_job_has_no_right_to(job: Cluster, words: str) -> None:
    assert not may(job, words)


def test_the_job_has_the_right_to_make_pods_of_labs(job: Cluster) -> None:
    assert may(job, "create pods -n labs")


def may(who: Cluster, words: str) -> bool:
    """Ask the API server as `kubectl auth can-i` does; without a namespace: everywhere."""
    parser = argparse.ArgumentParser()
    for name in ("verb", "resource"):
        parser.add_argument(name)
    for name in ("--subresource", "-n"):
        parser.add_argument(name, default="")
    parser.add_argument("--all-namespaces", action="store_true")
    asked = parser.parse_args(words.split())
    resource, _, group = asked.resource.partition(".")
    attributes = {
        "verb": asked.verb,
        "group": group,
        "resource": resource,
        "subresource": asked.subresource,
        "namespace": asked.n,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = who.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    assert answer is not None
    return bool(answer["status"]["allowed"])


def test_the_type_checker_finds_nothing_in_the_policies() -> None:
    policies = json.loads(kubectl("get", "validatingadmissionpolicies", "--output=json"))["items"]
    ours = {p["metadata"]["name"]: p for p in policies if p["metadata"]["name"].startswith("autolabs-")}
    assert len(ours) == 5
    warnings = {name: p.get("status", {}).get("typeChecking") for name, p in ours.items()}
    assert warnings == {name: {} for name in ours}
