from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest

from jobs.config.lab_settings import LabSettings
from jobs.config.manifests import (
    NETWORK_POLICY_TEMPLATE,
    POD_TEMPLATE,
    PUBLIC_EGRESS,
    LabManifests,
    make_lab_manifests,
)
from jobs.config.naming import OBJECT, SPEC_HASH, belongs_to_lab
from jobs.config.settings_document import parse_document
from jobs.config.stored import DEFAULTS, SETTINGS
from jobs.errors import PermanentError
from tests.support.cluster import templates
from tests.support.factories import IMAGE, make_payload

SETTINGS_OF_LABS = LabSettings(allowed_images=["*"])


def make(
    pod: bytes = templates.POD_AND_SERVICE,
    policy: bytes = templates.NETWORK_POLICY,
    settings: LabSettings = SETTINGS_OF_LABS,
    object_label: str | None = None,
    **changes: Any,
) -> LabManifests:
    return make_lab_manifests(
        make_payload(**changes),
        settings,
        namespace="labs",
        pod_template=pod,
        network_policy_template=policy,
        object_label=object_label,
    )


def objects(manifests: LabManifests) -> list[dict[str, Any]]:
    return [manifests.pod, manifests.service, manifests.network_policy]


def test_all_three_objects_carry_the_labs_name_labels_and_hash() -> None:
    for item in objects(make()):
        metadata = item["metadata"]
        assert (metadata["name"], metadata["namespace"]) == ("lab-instance-12345-demo", "labs")
        assert belongs_to_lab(item, 12345)
        assert len(metadata["annotations"][SPEC_HASH]) == 16


def test_placeholders_are_filled_and_the_templates_own_labels_stay() -> None:
    pod = make().pod
    container = pod["spec"]["containers"][0]
    assert container["image"] == IMAGE
    assert [e["value"] for e in container["env"]] == ["7/12345", "42", "labs/lab-instance-12345-demo"]
    assert container["resources"] == {
        "limits": {"cpu": "500m", "memory": "512Mi", "ephemeral-storage": "1Gi"},
        "requests": {"cpu": "25m", "memory": str(128 * 2**20)},
    }
    assert pod["metadata"]["labels"]["tier"] == "lab"


def test_a_template_cannot_choose_name_namespace_labels_or_selectors() -> None:
    pod = templates.POD_AND_SERVICE.replace(
        b"labels: {tier: lab}", b"{name: mine, namespace: kube-system, labels: {lab_instance_id: '1'}}"
    ).replace(b"metadata:\n  {name", b"metadata: {name")
    service = b"spec:\n  selector: {app: other}\n  ports"
    policy = templates.NETWORK_POLICY.replace(b"spec:\n", b"spec:\n  podSelector: {}\n")
    made = make(pod.replace(b"spec:\n  ports", service), policy)
    assert made.pod["metadata"]["name"] == "lab-instance-12345-demo"
    assert made.pod["metadata"]["namespace"] == "labs"
    assert belongs_to_lab(made.pod, 12345)
    assert made.service["spec"]["selector"] == {"lab_instance_id": "12345"}
    assert made.network_policy["spec"]["podSelector"] == {"matchLabels": {"lab_instance_id": "12345"}}


def test_selectors_and_labels_name_the_object_whatever_the_template_says() -> None:
    label = "0123456789abcdef0123"
    pod = templates.POD_AND_SERVICE.replace(b"{tier: lab}", b"{autolabs.io/object: mine}")
    plain, made = make(), make(pod, object_label=label)
    selector = {"lab_instance_id": "12345", OBJECT: label}
    assert made.service["spec"]["selector"] == selector
    assert made.network_policy["spec"]["podSelector"] == {"matchLabels": selector}
    assert [item["metadata"]["labels"][OBJECT] for item in objects(made)] == [label] * 3
    assert all(OBJECT not in item["metadata"]["labels"] for item in objects(make(pod)))
    labelled = make(object_label=label)
    hashes = [
        [item["metadata"]["annotations"][SPEC_HASH] for item in objects(one)] for one in (plain, labelled)
    ]
    assert hashes[0] == hashes[1], "labs of the release before are adopted"


def test_an_isolated_lab_reaches_only_what_the_template_allows() -> None:
    assert PUBLIC_EGRESS not in make().network_policy["spec"]["egress"]


def test_a_lab_that_is_not_isolated_reaches_public_addresses_too() -> None:
    egress = make(network_isolated=False).network_policy["spec"]["egress"]
    assert len(egress) == 2
    assert egress[-1] == PUBLIC_EGRESS


def test_the_hash_is_stable_and_changes_with_the_spec() -> None:
    def hashes(manifests: LabManifests) -> list[str]:
        return [item["metadata"]["annotations"][SPEC_HASH] for item in objects(manifests)]

    assert hashes(make()) == hashes(make())
    assert hashes(make())[0] != hashes(make(resources={"cpu": "1"}))[0]
    assert hashes(make())[0] != hashes(make(pod=templates.POD_AND_SERVICE.replace(b"8080", b"80", 1)))[0]


@pytest.mark.parametrize(
    ("pod", "policy", "evidence"),
    [
        (b"kind: Pod", templates.NETWORK_POLICY, "not Pod, NetworkPolicy"),
        (b"kind: Pod\n---\nkind: Pod", templates.NETWORK_POLICY, "not Pod, Pod, NetworkPolicy"),
        (templates.POD_AND_SERVICE + b"---\nkind: Secret\n", templates.NETWORK_POLICY, "Secret"),
        (templates.POD_AND_SERVICE, b"kind: ClusterRole", "ClusterRole"),
        (b"kind: Pod\n---\nkind: Service", templates.NETWORK_POLICY, "lacks a spec"),
        (templates.POD_AND_SERVICE, b"kind: NetworkPolicy\nspec: x", "lacks a spec"),
        (templates.POD_AND_SERVICE, b"kind: NetworkPolicy\nspec: ${password}", "unknown ${password}"),
        (templates.POD_AND_SERVICE + b"  x: 2026-01-01\n", templates.NETWORK_POLICY, "cannot be JSON"),
        (b"kind: Pod\nmetadata: x\n---\nkind: Service\nspec: {}", templates.NETWORK_POLICY, "metadata"),
        (templates.POD_AND_SERVICE.replace(b"{tier: lab}", b"tier"), templates.NETWORK_POLICY, "labels that"),
        (
            templates.POD_AND_SERVICE + b"  type: ExternalName\n",
            templates.NETWORK_POLICY,
            "Service without an address",
        ),
        (templates.POD_AND_SERVICE + b"  clusterIP: None\n", templates.NETWORK_POLICY, "without an address"),
    ],
)
def test_a_template_that_cannot_be_used_is_the_administrators_to_correct(
    pod: bytes, policy: bytes, evidence: str
) -> None:
    with pytest.raises(PermanentError, match="administrator must correct it") as caught:
        make(pod, policy)
    assert evidence in caught.value.evidence


def default(key: str) -> bytes:
    return (Path(DEFAULTS) / key).read_bytes()


def test_the_default_templates_and_settings_fit_together() -> None:
    settings = parse_document(LabSettings, SETTINGS, default(SETTINGS))
    settings.check_image(IMAGE)
    made = make(default(POD_TEMPLATE), default(NETWORK_POLICY_TEMPLATE), settings)
    assert [item["kind"] for item in objects(made)] == ["Pod", "Service", "NetworkPolicy"]
    assert "${" not in str(objects(made))


def test_the_default_pod_is_restricted() -> None:
    # The profile of https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    spec = make(default(POD_TEMPLATE), default(NETWORK_POLICY_TEMPLATE)).pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    context = spec["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_default_policy_lets_a_lab_out_to_dns_alone() -> None:
    policy = (DEFAULTS / NETWORK_POLICY_TEMPLATE).read_bytes()
    (rule,) = make(policy=policy).network_policy["spec"]["egress"]
    assert {(port["port"], port["protocol"]) for port in rule["ports"]} == {(53, "UDP"), (53, "TCP")}
    networks = [ipaddress.ip_network(peer["ipBlock"]["cidr"]) for peer in rule["to"] if "ipBlock" in peer]
    # CoreDNS's Service, a cache on the node, those of clouds, IPv6.
    servers = ("10.96.0.10", "172.20.0.10", "169.254.20.10", "169.254.25.10", "fd00:10:96::a", "fe80::53")
    for server in map(ipaddress.ip_address, servers):
        assert any(server in network for network in networks), server
    for server in map(ipaddress.ip_address, ("8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8")):
        assert not any(server in network for network in networks), server
