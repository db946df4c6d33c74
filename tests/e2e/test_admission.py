"""What the API server lets the job's ServiceAccount do: good and bad manifests, sent in its name.

Dry runs of the server go through admission as real requests do, and leave nothing behind.
"""

from __future__ import annotations

import copy
import json
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.platform import eventually
from dispatcher.tasks import CreateLabPod
from jobs.lab_settings import parse_settings
from jobs.manifests import LabManifests, make_lab_manifests

Manifest = dict[str, Any]
Change = Callable[[Manifest], object]

CONFIGS = Path(__file__).parents[2] / "jobs" / "default_configs"
JOB = "system:serviceaccount:platform:celery-workers-sa"
PROBE = "autolabs-admission-probe"


def kubectl(*words: str, stdin: Manifest | None = None, check: bool = True) -> str:
    """Return what kubectl said, or fail with it."""
    done = subprocess.run(
        ["kubectl", *words],
        input=json.dumps(stdin) if stdin else None,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = done.stdout + done.stderr
    if check and done.returncode:
        pytest.fail(f"kubectl {' '.join(words)}: {said}")
    return said


def apply(manifest: Manifest, *words: str, check: bool = True) -> str:
    """Apply as the job does: server-side, under its field manager."""
    return kubectl(
        *("apply", "--server-side", "--field-manager=autolabs-jobs", "--filename=-", *words),
        stdin=manifest,
        check=check,
    )


def refusal(said: str) -> str:
    assert "denied request: " in said or "forbidden" in said.lower(), f"not refused: {said}"
    return said


def make_manifests() -> LabManifests:
    settings = "settings/celery-workers-config.yaml"
    return make_lab_manifests(
        # Far above the ids of the database, so that no other test has this lab.
        CreateLabPod(
            lab_instance_id=2**60 + secrets.randbits(40),
            lab_id=2,
            student_id=3,
            docker_image=os.environ["LAB_IMAGE"],
        ),
        parse_settings(settings, (CONFIGS / settings).read_bytes()),
        namespace="labs",
        pod_template=(CONFIGS / "manifests" / "lab-pod-template.yaml").read_bytes(),
        network_policy_template=(CONFIGS / "manifests" / "network-policy-template.yaml").read_bytes(),
    )


@pytest.fixture
def lab() -> LabManifests:
    return make_manifests()


@pytest.fixture
def network_policy(lab: LabManifests) -> Iterator[Manifest]:
    """A lab's policy as the job made it; an object that starts nothing."""
    apply(lab.network_policy, f"--as={JOB}")
    yield lab.network_policy
    kubectl(
        "delete", "networkpolicy", "-n", "labs", lab.network_policy["metadata"]["name"], "--ignore-not-found"
    )


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


@pytest.fixture(scope="module")
def unguarded_namespace() -> Iterator[str]:
    """A namespace without Pod Security and limits, where RBAC lets the job and a probe do everything."""
    name = f"unguarded-{secrets.token_hex(4)}"
    kubectl("create", "namespace", name)
    who = ("--serviceaccount=platform:celery-workers-sa", f"--user={PROBE}")
    kubectl("create", "rolebinding", "all", "--clusterrole=admin", *who, "-n", name)
    kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=20s")
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def probed_policy(unguarded_namespace: str) -> Iterator[None]:
    """The policy on pods once more, for the probe and the unguarded namespace: there nothing else refuses."""
    policy = json.loads(kubectl("get", "validatingadmissionpolicy", "autolabs-job-pods", "--output=json"))
    name = f"probe-{unguarded_namespace}"
    spec = policy["spec"]
    spec["matchConditions"] = [{"name": "probe", "expression": f"request.userInfo.username == '{PROBE}'"}]
    api = {"apiVersion": policy["apiVersion"], "metadata": {"name": name}}
    selector = {"matchLabels": {"kubernetes.io/metadata.name": unguarded_namespace}}
    binding = {
        "policyName": name,
        "validationActions": ["Deny"],
        "matchResources": {"namespaceSelector": selector},
    }
    kubectl("create", "--filename=-", stdin={**api, "kind": "ValidatingAdmissionPolicy", "spec": spec})
    kubectl(
        "create", "--filename=-", stdin={**api, "kind": "ValidatingAdmissionPolicyBinding", "spec": binding}
    )
    pod = copy.deepcopy(make_manifests().pod)
    pod["metadata"]["namespace"] = unguarded_namespace
    pod["spec"]["hostNetwork"] = True
    eventually(
        lambda: "denied request: " in apply(pod, f"--as={PROBE}", "--dry-run=server", check=False),
        timeout_s=20,
        what="the API server knows the policy",
    )
    yield
    for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
        kubectl("delete", kind, name)


@pytest.mark.parametrize("kind", ["pod", "service", "network_policy"])
def test_the_default_templates_are_admitted(lab: LabManifests, kind: str) -> None:
    said = apply(getattr(lab, kind), f"--as={JOB}", "--dry-run=server")
    assert "serverside-applied" in said
    assert "Warning" not in said


def _container(pod: Manifest) -> Manifest:
    container: Manifest = pod["spec"]["containers"][0]
    return container


POD_CHANGES: dict[str, tuple[Change, str]] = {
    "another namespace": (lambda p: p["metadata"].update(namespace="platform"), "cannot patch resource"),
    "no lab label": (
        lambda p: p["metadata"]["labels"].pop("lab_instance_id"),
        "needs the label lab_instance_id",
    ),
    "a lab label that is no number": (
        lambda p: p["metadata"]["labels"].update(lab_instance_id="7x"),
        "needs the label lab_instance_id, a number",
    ),
    "somebody else's object": (
        lambda p: p["metadata"]["labels"].update({"app.kubernetes.io/managed-by": "helm"}),
        "app.kubernetes.io/managed-by=autolabs-jobs",
    ),
    "no student": (lambda p: p["metadata"]["labels"].pop("student_id"), "labels lab_id and student_id"),
    "the name of another lab": (
        lambda p: p["metadata"].update(name="lab-instance-1-demo"),
        "the name must be lab-instance-<lab_instance_id>-<image>",
    ),
    "an API token": (
        lambda p: p["spec"].update(automountServiceAccountToken=True),
        "set automountServiceAccountToken to false",
    ),
    "a token by default": (
        lambda p: p["spec"].pop("automountServiceAccountToken"),
        "set automountServiceAccountToken to false",
    ),
    "a Secret as a volume": (
        lambda p: p["spec"]["volumes"].append({"name": "s", "secret": {"secretName": "registry"}}),
        "only volumes of type emptyDir",
    ),
    "a token as a volume": (
        lambda p: p["spec"]["volumes"].append(
            {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}
        ),
        "only volumes of type emptyDir",
    ),
    "a volume without a bound": (
        lambda p: p["spec"]["volumes"].append({"name": "big", "emptyDir": {}}),
        "emptyDir with a sizeLimit",
    ),
    "a Secret in the environment": (
        lambda p: _container(p)["env"].append(
            {"name": "S", "valueFrom": {"secretKeyRef": {"name": "registry", "key": "k"}}}
        ),
        "takes nothing from Secrets or ConfigMaps",
    ),
    "all of a Secret in the environment": (
        lambda p: _container(p).update(envFrom=[{"secretRef": {"name": "registry"}}]),
        "takes nothing from Secrets or ConfigMaps",
    ),
    "an image from elsewhere": (
        lambda p: _container(p).update(image="docker.io/library/nginx:1"),
        "labs may not use docker.io/library/nginx:1; allowed are images from",
    ),
    "an image from a repository with a like name": (
        lambda p: _container(p).update(image="registry.gitlab.com/autolabs/labs-evil/x:1"),
        "labs may not use registry.gitlab.com/autolabs/labs-evil/x:1",
    ),
    "an init container from elsewhere": (
        lambda p: p["spec"].update(
            initContainers=[
                {
                    "name": "i",
                    "image": "evil:1",
                    "securityContext": _container(p)["securityContext"],
                }
            ]
        ),
        "labs may not use evil:1",
    ),
    "a chosen node": (lambda p: p["spec"].update(nodeName="node"), "names no node"),
    "any taint": (lambda p: p["spec"].update(tolerations=[{"operator": "Exists"}]), "tolerates neither"),
    "the control plane": (
        lambda p: p["spec"].update(
            tolerations=[{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]
        ),
        "tolerates neither",
    ),
    "more than a lab may have": (
        lambda p: _container(p)["resources"].update(limits={"cpu": "100", "memory": "512Mi"}),
        "maximum cpu usage per Container",
    ),
    "root": (lambda p: p["spec"].pop("securityContext"), "violates PodSecurity"),
}


@pytest.mark.parametrize(("change", "reason"), POD_CHANGES.values(), ids=POD_CHANGES)
def test_a_pod_that_the_job_should_not_make_is_refused(
    lab: LabManifests, change: Change, reason: str
) -> None:
    pod = copy.deepcopy(lab.pod)
    change(pod)
    assert reason in refusal(apply(pod, f"--as={JOB}", "--dry-run=server", check=False))


#: Pod Security and the LimitRange of labs step in before these; without them the policies still do.
UNGUARDED_POD_CHANGES: dict[str, tuple[Change, str]] = {
    "the node's network": (lambda p: p["spec"].update(hostNetwork=True), "no network, processes or IPC"),
    "the node's processes": (lambda p: p["spec"].update(hostPID=True), "no network, processes or IPC"),
    "a port of the node": (
        lambda p: _container(p)["ports"][0].update(hostPort=8080),
        "not privileged and have no hostPort",
    ),
    "privileges": (
        lambda p: _container(p).update(securityContext={"privileged": True}),
        "not privileged and have no hostPort",
    ),
    "a folder of the node": (
        lambda p: p["spec"]["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
        "only volumes of type emptyDir",
    ),
    "no limits": (
        lambda p: _container(p).pop("resources"),
        "need limits of cpu and memory",
    ),
    "a system priority": (
        lambda p: p["spec"].update(priorityClassName="system-node-critical"),
        "has no system priority",
    ),
}


@pytest.mark.usefixtures("probed_policy")
@pytest.mark.parametrize(("change", "reason"), UNGUARDED_POD_CHANGES.values(), ids=UNGUARDED_POD_CHANGES)
def test_a_pod_that_nothing_else_would_stop_is_refused(
    lab: LabManifests, unguarded_namespace: str, change: Change, reason: str
) -> None:
    pod = copy.deepcopy(lab.pod)
    pod["metadata"]["namespace"] = unguarded_namespace
    change(pod)
    assert reason in refusal(apply(pod, f"--as={PROBE}", "--dry-run=server", check=False))


@pytest.mark.usefixtures("probed_policy")
def test_the_policy_on_pods_has_nothing_against_the_default_template(
    lab: LabManifests, unguarded_namespace: str
) -> None:
    lab.pod["metadata"]["namespace"] = unguarded_namespace
    assert "serverside-applied" in apply(lab.pod, f"--as={PROBE}", "--dry-run=server")


def test_a_right_that_somebody_grants_elsewhere_is_of_no_use(
    lab: LabManifests, unguarded_namespace: str
) -> None:
    lab.service["metadata"]["namespace"] = unguarded_namespace
    said = apply(lab.service, f"--as={JOB}", "--dry-run=server", check=False)
    assert "jobs work in namespace labs only" in refusal(said)


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
}


@pytest.mark.parametrize(("change", "reason"), SERVICE_CHANGES.values(), ids=SERVICE_CHANGES)
def test_a_service_that_the_job_should_not_make_is_refused(
    lab: LabManifests, change: Change, reason: str
) -> None:
    service = copy.deepcopy(lab.service)
    change(service)
    assert reason in refusal(apply(service, f"--as={JOB}", "--dry-run=server", check=False))


@pytest.mark.parametrize(
    "selector",
    [{}, {"matchLabels": {"lab_instance_id": "1"}}, {"matchLabels": {"app.kubernetes.io/name": "lab"}}],
    ids=["every lab", "another lab", "all labs by name"],
)
def test_a_network_policy_that_would_open_other_labs_is_refused(
    lab: LabManifests, selector: Manifest
) -> None:
    policy = copy.deepcopy(lab.network_policy)
    policy["spec"]["podSelector"] = selector
    said = refusal(apply(policy, f"--as={JOB}", "--dry-run=server", check=False))
    assert "selects its own lab_instance_id" in said


def test_an_object_of_the_lab_may_be_changed_and_deleted(network_policy: Manifest) -> None:
    policy = copy.deepcopy(network_policy)
    policy["metadata"]["annotations"]["seen"] = "again"
    apply(policy, f"--as={JOB}", "--dry-run=server")
    name = network_policy["metadata"]["name"]
    kubectl("delete", "networkpolicy", "-n", "labs", name, f"--as={JOB}", "--dry-run=server")


def test_an_object_cannot_be_given_to_another_lab(network_policy: Manifest) -> None:
    policy = copy.deepcopy(network_policy)
    policy["metadata"]["labels"]["lab_instance_id"] = "1"
    said = apply(policy, f"--as={JOB}", "--dry-run=server", "--force-conflicts", check=False)
    assert "denied request: " in refusal(said)


def test_what_somebody_else_made_is_neither_taken_over_nor_deleted(
    lab: LabManifests, foreign_service: Manifest
) -> None:
    name = foreign_service["metadata"]["name"]
    as_job = ("-n", "labs", f"--as={JOB}", "--dry-run=server")
    labels = " ".join(f"{key}={value}" for key, value in lab.service["metadata"]["labels"].items())
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


def test_nobody_starts_another_image_in_labs(lab: LabManifests) -> None:
    pod = copy.deepcopy(lab.pod)
    _container(pod)["image"] = "docker.io/library/nginx:1"
    assert "labs may not use" in refusal(apply(pod, "--dry-run=server", check=False))


@pytest.mark.parametrize(
    "words",
    [
        "update pods -n labs",
        "deletecollection pods -n labs",
        "create pods --subresource=exec -n labs",
        "create pods --subresource=eviction -n labs",
        "patch pods --subresource=ephemeralcontainers -n labs",
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
def test_the_job_has_no_right_to(words: str) -> None:
    said = kubectl("auth", "can-i", *words.split(), f"--as={JOB}", check=False)
    assert said.startswith("no\n")


def test_the_type_checker_finds_nothing_in_the_policies() -> None:
    policies = json.loads(kubectl("get", "validatingadmissionpolicies", "--output=json"))["items"]
    ours = {p["metadata"]["name"]: p for p in policies if p["metadata"]["name"].startswith("autolabs-")}
    assert len(ours) == 5
    warnings = {name: p.get("status", {}).get("typeChecking") for name, p in ours.items()}
    assert warnings == {name: {} for name in ours}
