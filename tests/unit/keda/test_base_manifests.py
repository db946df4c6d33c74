"""deploy/base as it is applied: its rights, its levels, its containers, and nothing secret in it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cronjobs.manifests import make_labels as make_schedule_labels
from cronjobs.timetable import TASKS, Schedule
from dispatcher.quantities import parse_quantity
from jobs.config.lab_settings import LabSettings
from jobs.config.naming import MANAGED_BY, lab_labels, lab_object_name
from jobs.config.settings_document import parse_document
from keda.podspec import PRIORITY_CLASS, SERVICE_ACCOUNT, make_labels
from keda.profiles import PROFILES

ROOT = Path(__file__).parents[3]
BASE = ROOT / "deploy" / "base"
SETTINGS = ROOT / "jobs" / "config" / "default_configs" / "settings" / "celery-workers-config.yaml"
KUSTOMIZATION = yaml.safe_load((BASE / "kustomization.yaml").read_text())
MANIFESTS: list[dict[str, Any]] = [
    manifest
    for name in KUSTOMIZATION["resources"]
    for manifest in yaml.safe_load_all((BASE / name).read_text())
]


def title(manifest: dict[str, Any]) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in MANIFESTS if manifest["kind"] == kind]


def the(kind: str, name: str) -> dict[str, Any]:
    (manifest,) = [m for m in of_kind(kind) if m["metadata"]["name"] == name]
    return manifest


def pod_templates() -> Iterator[tuple[str, dict[str, Any]]]:
    for manifest in MANIFESTS:
        if manifest["kind"] == "Job":
            yield title(manifest), manifest["spec"]["template"]


PODS = dict(pod_templates())
CONTAINERS = {
    f"{name}/{container['name']}": container
    for name, template in PODS.items()
    for container in [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]
}


@pytest.fixture(params=PODS)
def pod(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(PODS[request.param]["spec"])


@pytest.fixture(params=CONTAINERS)
def container(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(CONTAINERS[request.param])


def settings() -> LabSettings:
    return parse_document(LabSettings, SETTINGS.name, SETTINGS.read_bytes())


def test_every_file_is_part_of_the_base() -> None:
    files = {path.name for path in BASE.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(KUSTOMIZATION["resources"])


@pytest.mark.parametrize("manifest", MANIFESTS, ids=title)
def test_labels_explain_every_object(manifest: dict[str, Any]) -> None:
    (common,) = KUSTOMIZATION["labels"]
    labels = {**common["pairs"], **manifest["metadata"]["labels"]}
    assert {
        f"app.kubernetes.io/{key}" for key in ("name", "instance", "component", "part-of", "managed-by")
    } <= set(labels)
    assert labels["app.kubernetes.io/part-of"] == "autolabs"


@pytest.mark.parametrize("manifest", MANIFESTS, ids=title)
def test_every_namespaced_object_says_where_it_belongs(manifest: dict[str, Any]) -> None:
    kind = manifest["kind"]
    cluster_wide = kind in ("Namespace", "PriorityClass") or kind.startswith("ValidatingAdmission")
    assert ("namespace" in manifest["metadata"]) is not cluster_wide
    if not cluster_wide:
        assert manifest["metadata"]["namespace"] in {n["metadata"]["name"] for n in of_kind("Namespace")}


def test_no_secret_is_in_the_base() -> None:
    assert not of_kind("Secret")
    text = "".join(path.read_text() for path in BASE.glob("*.yaml"))
    assert not re.search(r"(?i)(password|passwd|secret_?key|token)\s*:\s*[\"'A-Za-z0-9]{6,}", text)
    assert not re.search(r"\w+://[^\s/:@]+:[^\s/@]+@", text)


def test_the_namespaces() -> None:
    assert {n["metadata"]["name"] for n in of_kind("Namespace")} == {"platform", "labs", "messaging"}


@pytest.mark.parametrize("name", ["labs", "platform"])
@pytest.mark.parametrize("mode", ["enforce", "audit", "warn"])
def test_pods_are_restricted(name: str, mode: str) -> None:
    labels = the("Namespace", name)["metadata"]["labels"]
    assert labels[f"pod-security.kubernetes.io/{mode}"] == "restricted"


def test_the_job_may_do_exactly_this() -> None:
    (role,) = of_kind("Role")
    assert role["metadata"]["namespace"] == "labs"
    granted = {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert all(set(rule) == {"apiGroups", "resources", "verbs"} for rule in role["rules"])
    assert granted == {
        ("", "pods"): {"get", "list", "watch", "create", "patch", "delete"},
        ("", "pods/log"): {"get"},
        ("", "pods/resize"): {"patch"},
        ("", "events"): {"list", "create"},
        ("", "services"): {"get", "list", "watch", "create", "patch", "delete"},
        ("networking.k8s.io", "networkpolicies"): {"get", "list", "watch", "create", "patch", "delete"},
    }


def test_nobody_else_has_any_rights() -> None:
    assert not of_kind("ClusterRole")
    assert not of_kind("ClusterRoleBinding")
    (role,) = of_kind("Role")
    (binding,) = of_kind("RoleBinding")
    assert binding["metadata"]["namespace"] == "labs"
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": SERVICE_ACCOUNT, "namespace": "platform"}
    ]
    assert the("ServiceAccount", SERVICE_ACCOUNT)["automountServiceAccountToken"] is False


def test_a_pod_of_the_base_has_no_api_token(pod: dict[str, Any]) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod
    assert pod["enableServiceLinks"] is False


def test_a_pod_of_the_base_is_restricted(pod: dict[str, Any]) -> None:
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == 10001
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all({"secret", "projected", "emptyDir"} & set(volume) for volume in pod["volumes"])
    projected = [source for v in pod["volumes"] for source in v.get("projected", {}).get("sources", [])]
    assert all(set(source) == {"secret"} for source in projected)


def test_a_container_has_resources_and_a_locked_down_context(container: dict[str, Any]) -> None:
    assert set(container["resources"]) == {"requests", "limits"}
    assert all(set(values) == {"cpu", "memory"} for values in container["resources"].values())
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_an_image_has_a_tag_that_a_release_replaces(container: dict[str, Any]) -> None:
    assert re.fullmatch(r"registry\.gitlab\.com/autolabs/jobs:\d+\.\d+\.\d+", container["image"])
    assert container["imagePullPolicy"] == "IfNotPresent"


def test_a_container_reads_its_secrets_as_files(container: dict[str, Any]) -> None:
    assert {"env", "envFrom"}.isdisjoint(container)
    (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == "/run/secrets/autolabs"]
    assert mount["readOnly"] is True


def test_the_setup_runs_its_steps_in_order_with_the_administrators_secret() -> None:
    spec = PODS["Job/autolabs-setup"]["spec"]
    steps = [*spec["initContainers"], *spec["containers"]]
    assert [step["command"] for step in steps] == [
        ["python3", "-m", "dispatcher", "db", "upgrade"],
        ["python3", "-m", "dispatcher", "topology", "declare"],
        ["python3", "-m", "jobs.config.stored", "upload"],
    ]
    assert [v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v] == ["autolabs-setup"]
    assert the("Job", "autolabs-setup")["spec"]["activeDeadlineSeconds"] > 0


@pytest.mark.parametrize(
    "words",
    [
        ("dispatcher", "db", "upgrade"),
        ("dispatcher", "topology", "declare"),
        ("jobs.config.stored", "upload"),
    ],
)
def test_a_step_of_the_setup_is_a_command_that_names_its_settings(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env={},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in (1, 2)
    assert "invalid settings:" in done.stderr
    assert ": not set" in done.stderr


def test_the_quota_is_that_of_1000_labs_of_the_default_size() -> None:
    hard = the("ResourceQuota", "labs")["spec"]["hard"]
    assert hard["pods"] == hard["services"] == "1000"
    assert hard["count/networkpolicies.networking.k8s.io"] == "1001"
    ratios = {"cpu": settings().cpu_request_ratio, "memory": settings().memory_request_ratio}
    for name, ratio in ratios.items():
        limits = 1000 * parse_quantity(settings().default_resources[name])
        assert parse_quantity(hard[f"limits.{name}"]) == limits
        assert float(parse_quantity(hard[f"requests.{name}"])) == pytest.approx(float(limits) * float(ratio))
    assert [hard[f"services.{kind}"] for kind in ("nodeports", "loadbalancers")] == ["0", "0"]


def test_the_largest_lab_that_the_settings_allow_is_within_the_limit_range() -> None:
    (limits,) = the("LimitRange", "labs")["spec"]["limits"]
    for name in ("cpu", "memory"):
        assert parse_quantity(settings().max_resources[name]) <= parse_quantity(limits["max"][name])
        assert limits["default"][name] == settings().default_resources[name]
    lab = settings()
    for name, ratio in {"cpu": lab.cpu_request_ratio, "memory": lab.memory_request_ratio}.items():
        requested = float(parse_quantity(limits["default"][name])) * float(ratio)
        assert float(parse_quantity(limits["defaultRequest"][name])) == pytest.approx(requested)


def test_labs_are_closed_both_ways() -> None:
    spec = the("NetworkPolicy", "default-deny")["spec"]
    assert the("NetworkPolicy", "default-deny")["metadata"]["namespace"] == "labs"
    assert spec == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def _selected_by(policy: dict[str, Any], labels: dict[str, str]) -> bool:
    selector = policy["spec"]["podSelector"]
    return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items()) and all(
        labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", [])
    )


PRIVATE = {"10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"}
LINK_LOCAL = {"169.254.0.0/16", "fe80::/10"}


def _is_for_dns(rule: dict[str, Any]) -> bool:
    return {port["port"] for port in rule["ports"]} == {53}


OURS = {name: template["metadata"]["labels"] for name, template in PODS.items()}
OURS["job"] = make_labels(PROFILES[0])
OURS |= {task: make_schedule_labels(Schedule(name="any", task=task, schedule="@hourly")) for task in TASKS}


@pytest.mark.parametrize("name", OURS)
def test_what_runs_in_platform_is_bounded_in_what_it_reaches(name: str) -> None:
    policies = [
        policy
        for policy in of_kind("NetworkPolicy")
        if policy["metadata"]["namespace"] == "platform" and _selected_by(policy, OURS[name])
    ]
    assert {"Ingress", "Egress"} == {kind for policy in policies for kind in policy["spec"]["policyTypes"]}
    assert not [policy for policy in policies if policy["spec"].get("ingress")]
    rules = [rule for policy in policies for rule in policy["spec"]["egress"]]
    # A rule without `to` is the whole internet.
    assert all(rule["to"] and rule["ports"] for rule in rules)
    for rule in rules:
        blocks = {peer["ipBlock"]["cidr"] for peer in rule["to"] if "ipBlock" in peer}
        assert blocks in (set(), PRIVATE) or (blocks == PRIVATE | LINK_LOCAL and _is_for_dns(rule))
    ports = {port["port"] for rule in rules for port in rule["ports"]}
    needed = {53, 5672, 5432, 9000}
    assert needed <= ports
    with_cluster = name in ("job", "health", "sync")
    assert (6443 in ports) is with_cluster, "only these talk to the API server"
    job_alone = {8080, 6379}
    assert ports & job_alone == (job_alone if name == "job" else set()), (
        "only a job talks to labs and to Redis"
    )
    # The API server, or an object store by HTTPS.
    assert 443 in ports


def test_every_admission_policy_denies() -> None:
    bindings = {
        binding["spec"]["policyName"]: binding for binding in of_kind("ValidatingAdmissionPolicyBinding")
    }
    policies = {policy["metadata"]["name"]: policy for policy in of_kind("ValidatingAdmissionPolicy")}
    assert bindings.keys() == policies.keys()
    assert all("Deny" in binding["spec"]["validationActions"] for binding in bindings.values())
    assert all(policy["spec"]["failurePolicy"] == "Fail" for policy in policies.values())
    for policy in policies.values():
        assert all(validation["message"] for validation in policy["spec"]["validations"])


def test_the_admission_policies_know_the_names_that_the_job_uses() -> None:
    text = (BASE / "admission.yaml").read_text()
    assert f"system:serviceaccount:platform:{SERVICE_ACCOUNT}" in text
    assert f"'{MANAGED_BY}'" in text
    assert {"lab_instance_id", "lab_id", "student_id"} <= set(re.findall(r"\w+", text)) & set(
        lab_labels(1, 2, 3)
    )
    assert lab_object_name(7, "registry.example/labs/nmap:1").startswith("lab-instance-7-")


def test_images_that_the_settings_allow_are_admitted() -> None:
    (expression,) = [
        variable["expression"]
        for variable in the("ValidatingAdmissionPolicy", "autolabs-lab-images")["spec"]["variables"]
        if variable["name"] == "prefixes"
    ]
    prefixes = tuple(re.findall("'([^']+)'", expression))
    assert all(prefix.endswith("/") for prefix in prefixes)
    for pattern in settings().allowed_images:
        assert pattern.startswith(prefixes)


def test_a_free_place_goes_to_the_platform_before_labs_and_nobody_is_evicted_for_it() -> None:
    platform, labs = the("PriorityClass", PRIORITY_CLASS), the("PriorityClass", "autolabs-labs")
    # Above 0: Pods without a class, which preempt, must not evict a lab.
    assert platform["value"] > labs["value"] > 0
    for one in (platform, labs):
        assert (one["preemptionPolicy"], one["globalDefault"]) == ("Never", False)


def test_every_pod_of_the_base_has_the_class_of_the_platform(pod: dict[str, Any]) -> None:
    assert pod["priorityClassName"] == PRIORITY_CLASS
