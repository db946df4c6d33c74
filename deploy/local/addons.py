"""CoreDNS, RabbitMQ, PostgreSQL, MinIO, Redis and KEDA: apply them, and wait until they serve."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from deploy.local import credentials as passwords
from deploy.local import programs
from deploy.local.cluster import kubectl
from deploy.local.credentials import Credentials
from deploy.local.errors import CommandError, LocalClusterError
from deploy.local.evidence import shown_by
from deploy.local.images import Image
from deploy.local.objects import make_secret, write_kustomization
from deploy.local.paths import Layout
from deploy.local.steps import step

KEDA_MODULE = "github.com/kedacore/keda/v2"
#: Without metrics-server: ScaledJobs do not need it, and an APIService without endpoints
#: blocks the deletion of namespaces.
KEDA_PARTS = ("crd", "general", "rbac", "manager", "service_account")
DEPLOYMENTS = (
    ("kube-system", "coredns"),
    ("messaging", "rabbitmq"),
    ("infrastructure", "postgresql"),
    ("infrastructure", "minio"),
    ("infrastructure", "redis"),
    ("keda", "keda-operator"),
)


def apply(layout: Layout, images: list[Image]) -> None:
    """Apply all of them at once; the server sorts out who waits for whom."""
    with step("Apply CoreDNS, RabbitMQ, PostgreSQL, MinIO, Redis and KEDA", "3 s"):
        keda = programs.module_source(layout, programs.KEDA, KEDA_MODULE) / "config"
        folder = write_kustomization(
            layout,
            "addons",
            folders=[layout.sources / "manifests", *(keda / part for part in KEDA_PARTS)],
            objects=secrets(passwords.ensure(layout), layout.pki),
            images={image.name.rpartition(":")[0]: image.name for image in images},
            patches=[keda_patch()],
        )
        # Another manager than our own part's: both apply the namespace `messaging`.
        manager = "--field-manager=autolabs-addons"
        words = ("apply", "--server-side", "--force-conflicts", manager, "--kustomize", str(folder))
        kubectl(layout, *words)


def secrets(made: Credentials, pki: Path) -> list[dict[str, Any]]:
    """Return the Secrets that the manifests mount."""
    minio = {"MINIO_ROOT_USER": "autolabs", "MINIO_ROOT_PASSWORD": made.minio}
    definitions = passwords.rabbitmq_definitions(made)
    names = {"tls.crt": "keda.crt", "tls.key": "keda.key", "ca.crt": "ca.crt"}
    keda = {key: (pki / file).read_text() for key, file in names.items()}
    return [
        make_secret("messaging", "rabbitmq-definitions", {"definitions.json": definitions}),
        make_secret("infrastructure", "postgresql", {"password": made.postgresql}),
        make_secret("infrastructure", "minio", minio),
        make_secret("infrastructure", "redis", {"redis.conf": passwords.redis_config(made)}),
        make_secret("keda", "kedaorg-certs", keda),
    ]


def keda_patch() -> dict[str, Any]:
    """Fit KEDA's own Deployment to a small single node without a registry.

    Its certificates are ours: making them itself, it restarts and waits up to a minute for the
    kubelet to show them. One replica needs no lease, and losing one would end the operator.
    """
    container = "/spec/template/spec/containers/0"
    arguments = [
        "--zap-log-level=info",
        "--zap-encoder=console",
        "--zap-time-encoding=rfc3339",
        "--enable-cert-rotation=false",
        "--enable-apiservice-patching=false",
    ]
    changes: list[tuple[str, Any]] = [
        (f"{container}/imagePullPolicy", "IfNotPresent"),
        (f"{container}/args", arguments),
        (f"{container}/readinessProbe/initialDelaySeconds", 1),
        (f"{container}/readinessProbe/periodSeconds", 2),
        (f"{container}/resources/requests/cpu", "50m"),
    ]
    return {
        "target": {"group": "apps", "kind": "Deployment", "name": "keda-operator"},
        "patch": json.dumps([{"op": "add", "path": path, "value": value} for path, value in changes]),
    }


def wait(layout: Layout) -> None:
    """Return when all of them are ready; the error shows the pods and the last log lines."""
    with step("Wait until they serve", "15 s"):
        for namespace, name in DEPLOYMENTS:
            wait_for_deployment(layout, namespace, name)


def wait_for_deployment(layout: Layout, namespace: str, name: str, *, timeout_s: int = 120) -> None:
    """Return when a Deployment is rolled out."""
    try:
        kubectl(
            layout,
            *("rollout", "status", f"deployment/{name}", "--namespace", namespace),
            f"--timeout={timeout_s}s",
            timeout_s=timeout_s + 10,
        )
    except CommandError as exc:
        seen = _seen(layout, namespace, name)
        raise LocalClusterError(f"{name} in {namespace} is not ready\n{exc}\n{seen}") from exc


def _seen(layout: Layout, namespace: str, name: str) -> str:
    commands = (
        ("get", "pods", "--namespace", namespace),
        ("logs", f"deployment/{name}", "--namespace", namespace, "--tail=20"),
        ("get", "events", "--namespace", namespace, "--sort-by=.lastTimestamp"),
    )
    return shown_by(functools.partial(kubectl, layout, timeout_s=20), commands)
