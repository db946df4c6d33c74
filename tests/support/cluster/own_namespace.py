"""A namespace of one test module in the real cluster, with the rights that the job has in `labs`.

It is made of deploy/base's own manifests under another name: Pod Security, limits, default-deny, and a
ServiceAccount with exactly the rules of rbac.yaml.
"""

from __future__ import annotations

import base64
import json
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jobs.cluster.access import ClusterAccess, kubeconfig_access
from jobs.cluster.client import Cluster, Manifest

BASE = Path(__file__).parents[3] / "deploy" / "base"
#: Where a test puts `kubeconfig` in its bucket, and what it sets KUBECONFIG_OBJECT to.
KUBECONFIG_OBJECT = "kubeconfig/own-namespace.yaml"

#: Seconds after which kubectl hangs, on however slow a machine, and how long it is told to wait itself.
_HANGS_S = 180
_PATIENCE = f"--timeout={_HANGS_S // 2}s"
_SERVICE_ACCOUNT = "celery-workers-sa"
_TOKEN_LIFETIME = "2h"


def kubectl(*words: str, stdin: object = None) -> str:
    """Return what kubectl printed, as an operator with all rights; fail with what it complained of."""
    done = subprocess.run(
        ["kubectl", *words],
        input=None if stdin is None else json.dumps(stdin),
        capture_output=True,
        text=True,
        timeout=_HANGS_S,
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


@dataclass(frozen=True)
class OwnNamespace:
    """`kubeconfig` has inline data only, as KUBECONFIG_OBJECT wants it; `access` is the same, parsed."""

    name: str
    kubeconfig: bytes = field(repr=False)
    #: With an operator's rights, for looking at what the job made, and for meddling.
    cluster: Cluster = field(repr=False)

    @classmethod
    def create(cls) -> OwnNamespace:
        name = f"labs-test-{uuid.uuid4().hex[:10]}"
        kubectl("create", "namespace", name)
        try:
            kubectl("apply", "--filename=-", stdin={**_LIST, "items": [*_manifests(name)]})
            # Without it admission refuses every Pod.
            kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, _PATIENCE)
            operator = _operator()
            cluster = Cluster(operator)
            if operator.client_pem_file:
                Path(operator.client_pem_file).unlink()  # read by now
            return cls(name, _kubeconfig(name, operator), cluster)
        except BaseException:
            kubectl("delete", "namespace", name, "--wait=false")
            raise

    @property
    def access(self) -> ClusterAccess:
        """What a container has that reads `kubeconfig`."""
        return kubeconfig_access(self.kubeconfig)

    def kubeconfig_of(self, service_account: str) -> bytes:
        """Return what `kubeconfig` is for the job's, for another ServiceAccount of this namespace."""
        config = json.loads(self.kubeconfig)
        config["users"][0]["user"] = {"token": _token(self.name, service_account)}
        return json.dumps(config).encode()

    @property
    def collections(self) -> dict[str, str]:
        """Kind -> path of its objects, for `cluster`."""
        return {
            "Pod": f"/api/v1/namespaces/{self.name}/pods",
            "Service": f"/api/v1/namespaces/{self.name}/services",
            "NetworkPolicy": f"/apis/networking.k8s.io/v1/namespaces/{self.name}/networkpolicies",
        }

    def objects(self, selector: str = "lab_instance_id") -> list[Manifest]:
        """Return the Pods, Services and NetworkPolicies that a label selector finds, kinds filled in."""
        return [
            {**item, "kind": kind}
            for kind, path in self.collections.items()
            for item in self.cluster.list_items(path, labelSelector=selector)[0]
        ]

    def objects_of(self, lab_instance_id: int) -> list[Manifest]:
        """Return whatever carries the label of a lab, whoever made it."""
        return self.objects(f"lab_instance_id={lab_instance_id}")

    def names_of(self, lab_instance_id: int) -> list[str]:
        """Return the same as kind/name."""
        return [f"{item['kind']}/{item['metadata']['name']}" for item in self.objects_of(lab_instance_id)]

    def kubectl(self, *words: str, stdin: object = None) -> str:
        """Run kubectl in this namespace as an operator."""
        return kubectl("--namespace", self.name, *words, stdin=stdin)

    def remove(self) -> None:
        """Start the removal of the namespace and of all that is in it."""
        kubectl("delete", "namespace", self.name, "--wait=false")

    def evidence(self) -> str:
        events = "--sort-by=.metadata.creationTimestamp"
        return self.kubectl("get", "pods,services,networkpolicies") + self.kubectl("get", "events", events)


_LIST = {"apiVersion": "v1", "kind": "List"}


def _manifests(name: str) -> Iterator[Manifest]:
    for file in ("namespaces.yaml", "rbac.yaml", "labs-network.yaml", "labs-limits.yaml"):
        for manifest in yaml.safe_load_all((BASE / file).read_text()):
            if manifest["kind"] != "Namespace":
                yield _moved(manifest, name)
            elif manifest["metadata"]["name"] == "labs":
                # Its labels, which say what Pods may do here.
                yield {**manifest, "metadata": {**manifest["metadata"], "name": name}}


def _moved(tree: Any, namespace: str) -> Any:
    if isinstance(tree, dict):
        return {
            key: namespace if key == "namespace" else _moved(value, namespace) for key, value in tree.items()
        }
    return [_moved(item, namespace) for item in tree] if isinstance(tree, list) else tree


def service_account_access(namespace: str) -> ClusterAccess:
    """Return what the job's ServiceAccount of a namespace has, for two hours."""
    return kubeconfig_access(_kubeconfig(namespace, _operator()))


def _operator() -> ClusterAccess:
    return kubeconfig_access(kubectl("config", "view", "--raw", "--flatten", "--minify").encode())


def _token(namespace: str, service_account: str) -> str:
    words = ("create", "token", service_account, "-n", namespace, f"--duration={_TOKEN_LIFETIME}")
    return kubectl(*words).strip()


def _kubeconfig(namespace: str, operator: ClusterAccess) -> bytes:
    cluster = {
        "server": operator.server,
        "certificate-authority-data": base64.b64encode(operator.ca_pem.encode()).decode(),
    }
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "own", "cluster": cluster}],
        "users": [{"name": "own", "user": {"token": _token(namespace, _SERVICE_ACCOUNT)}}],
        "contexts": [{"name": "own", "context": {"cluster": "own", "user": "own"}}],
        "current-context": "own",
    }
    return json.dumps(config).encode()
