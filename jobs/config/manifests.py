"""Build a lab's Pod, Service and NetworkPolicy from the templates.

Whatever a template says, name, namespace, labels, kinds and the policy's selector are set here.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from dispatcher.tasks import CreateLabPod
from jobs.config import naming
from jobs.config.lab_settings import LabSettings
from jobs.config.naming import Manifest
from jobs.config.pod_defaults import apply_defaults
from jobs.config.templates import fill, parse_documents, template_error

POD_TEMPLATE = "manifests/lab-pod-template.yaml"
NETWORK_POLICY_TEMPLATE = "manifests/network-policy-template.yaml"

#: Egress of a lab with network_isolated=false: public addresses only, so never the platform itself.
_NOT_PUBLIC = ["10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"]
PUBLIC_EGRESS: Manifest = {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": _NOT_PUBLIC}}]}


@dataclass(frozen=True, slots=True)
class LabManifests:
    """The three objects of one lab, ready to apply but for the owner of the last two."""

    pod: Manifest
    service: Manifest
    network_policy: Manifest


def make_lab_manifests(
    payload: CreateLabPod,
    settings: LabSettings,
    *,
    namespace: str,
    pod_template: bytes,
    network_policy_template: bytes,
    object_label: str | None = None,
) -> LabManifests:
    """Return the objects of a lab. Raises PermanentError for a template that cannot be used.

    Without an object label they are as the release before made them.
    """
    name = naming.lab_object_name(payload.lab_instance_id, payload.docker_image)
    values = {
        "lab_instance_id": str(payload.lab_instance_id),
        "lab_id": str(payload.lab_id),
        "student_id": str(payload.student_id),
        "pod_name": name,
        "docker_image": payload.docker_image,
        "namespace": namespace,
        **settings.resource_values(payload),
    }
    templates = {POD_TEMPLATE: pod_template, NETWORK_POLICY_TEMPLATE: network_policy_template}
    documents: list[Manifest] = [
        document
        for key, content in templates.items()
        for document in fill(key, parse_documents(key, content), values)
    ]
    by_kind = {str(document.get("kind")): document for document in documents}
    if len(documents) != 3 or set(by_kind) != {"Pod", "Service", "NetworkPolicy"}:
        kinds = ", ".join(str(document.get("kind")) for document in documents)
        raise template_error(
            POD_TEMPLATE, f"and the policy must give a Pod, a Service, a NetworkPolicy, not {kinds}"
        )
    _restrict_to_lab(by_kind, payload)
    for document in documents:
        _identify(document, name, namespace, payload)
    pod = by_kind["Pod"]
    apply_defaults(pod)
    pod["metadata"]["labels"].pop(naming.OBJECT, None)
    if object_label:
        pod["metadata"]["labels"][naming.OBJECT] = object_label
    return LabManifests(pod, selecting(by_kind["Service"], pod), selecting(by_kind["NetworkPolicy"], pod))


def selecting(manifest: Manifest, pod: Manifest) -> Manifest:
    """Return a Service or NetworkPolicy that selects this Pod by what it carries.

    The Pod of a lab that runs since the release before has no object label.
    """
    selector = naming.pod_selector(pod)
    labels = {key: value for key, value in manifest["metadata"]["labels"].items() if key != naming.OBJECT}
    labels |= {key: value for key, value in selector.items() if key == naming.OBJECT}
    chosen: Manifest = {"selector": selector}
    if manifest["kind"] == "NetworkPolicy":
        chosen = {"podSelector": {"matchLabels": selector}}
    metadata = {**manifest["metadata"], "labels": labels}
    return {**manifest, "metadata": metadata, "spec": {**manifest.get("spec", {}), **chosen}}


def _restrict_to_lab(by_kind: dict[str, Manifest], payload: CreateLabPod) -> None:
    selector = {"lab_instance_id": str(payload.lab_instance_id)}
    try:
        by_kind["Service"]["spec"]["selector"] = selector
        # A policy with an empty selector would open every lab of the namespace.
        policy = by_kind["NetworkPolicy"]["spec"]
        policy["podSelector"] = {"matchLabels": selector}
        if not payload.network_isolated:
            policy["egress"] = [*policy.get("egress", []), PUBLIC_EGRESS]
    except (KeyError, TypeError) as exc:
        raise template_error(POD_TEMPLATE, f"or the policy lacks a spec ({exc!r})") from exc
    service = by_kind["Service"]["spec"]
    if service.get("type") == "ExternalName" or service.get("clusterIP") == "None":
        raise template_error(POD_TEMPLATE, "gives a Service without an address")


def _identify(document: Manifest, name: str, namespace: str, payload: CreateLabPod) -> None:
    metadata = document.setdefault("metadata", {})
    if not isinstance(metadata, dict):
        raise template_error(POD_TEMPLATE, "or the policy has a metadata that is no mapping")
    for key in ("labels", "annotations"):
        if not isinstance(metadata.get(key) or {}, dict):
            raise template_error(POD_TEMPLATE, f"or the policy has {key} that are no mapping")
    labels = naming.lab_labels(payload.lab_instance_id, payload.lab_id, payload.student_id)
    metadata["name"] = name
    metadata["namespace"] = namespace
    metadata["labels"] = {**(metadata.get("labels") or {}), **labels}
    # The hash is taken before the object label is set, as the release before takes it: its Pods are adopted.
    annotations = dict(metadata.get("annotations") or {})
    metadata["annotations"] = {**annotations, naming.SPEC_HASH: _hash(document)}


def _hash(document: dict[str, Any]) -> str:
    try:
        text = json.dumps(document, sort_keys=True)
    except TypeError as exc:  # YAML knows dates and binary data
        raise template_error(POD_TEMPLATE, f"or the policy cannot be JSON: {exc}") from exc
    return hashlib.sha256(text.encode()).hexdigest()[:16]
