"""Which Pods the API server lets the job's ServiceAccount make: good and bad ones, sent by it.

Dry runs of the server go through admission as real requests do, and leave nothing behind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from jobs.cluster.client import Cluster
from jobs.config.manifests import LabManifests
from tests.support.cluster.admission import (
    HANGS_S,
    JOB,
    PROBE,
    Change,
    Manifest,
    apply,
    as_job,
    as_probe,
    dry_run,
    kubectl,
    make_manifests,
    refusal,
    refusal_of_change,
)
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def job() -> Cluster:
    return as_job()


@pytest.fixture(scope="module")
def probe() -> Cluster:
    return as_probe()


@pytest.fixture(scope="module")
def probed_policy(unguarded_namespace: str, probe: Cluster) -> Iterator[None]:
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
    try:
        for kind, its in (("", spec), ("Binding", binding)):
            made = {**api, "kind": f"ValidatingAdmissionPolicy{kind}", "spec": its}
            kubectl("create", "--filename=-", stdin=made)
        pod = make_manifests().pod
        pod["metadata"]["namespace"] = unguarded_namespace
        pod["spec"]["hostNetwork"] = True
        eventually(
            lambda: "denied request: " in dry_run(probe, pod), HANGS_S, what="the API server knows the policy"
        )
        yield
    finally:
        for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
            kubectl("delete", kind, name, "--ignore-not-found")


@pytest.mark.parametrize("kind", ["pod", "service", "network_policy"])
def test_the_default_templates_are_admitted(manifests: LabManifests, kind: str) -> None:
    said = apply(getattr(manifests, kind), f"--as={JOB}", "--dry-run=server")
    assert "serverside-applied" in said
    assert "Warning" not in said


def _container(pod: Manifest) -> Manifest:
    container: Manifest = pod["spec"]["containers"][0]
    return container


POD_CHANGES: dict[str, tuple[Change, str]] = {
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
    job: Cluster, manifests: LabManifests, change: Change, reason: str
) -> None:
    assert reason in refusal_of_change(job, manifests.pod, change)


def test_the_job_makes_no_pod_in_another_namespace(manifests: LabManifests) -> None:
    manifests.pod["metadata"]["namespace"] = "platform"
    said = apply(manifests.pod, f"--as={JOB}", "--dry-run=server", check=False)
    assert "cannot patch resource" in refusal(said)


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
    probe: Cluster, manifests: LabManifests, unguarded_namespace: str, change: Change, reason: str
) -> None:
    manifests.pod["metadata"]["namespace"] = unguarded_namespace
    assert reason in refusal_of_change(probe, manifests.pod, change)


@pytest.mark.usefixtures("probed_policy")
def test_the_policy_on_pods_has_nothing_against_the_default_template(
    probe: Cluster, manifests: LabManifests, unguarded_namespace: str
) -> None:
    manifests.pod["metadata"]["namespace"] = unguarded_namespace
    assert dry_run(probe, manifests.pod) == ""
