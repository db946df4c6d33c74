"""CLUSTER=existing: the same commands on somebody's cluster; nothing is built or started.

`up` applies our part and `down` removes it; a namespace goes only if `up` had made it.
"""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from deploy.local import platform_part, programs, services
from deploy.local.errors import CommandError, LocalClusterError
from deploy.local.paths import Layout
from deploy.local.services import Urls
from deploy.local.shell import run
from deploy.local.steps import step

#: Variable and what it says.
NEEDED = (
    ("KUBECONFIG", "the cluster to use"),
    ("AMQP_URL", "RabbitMQ 4, amqp://user:password@host:5672/vhost, may configure"),
    ("DATABASE_URL", "PostgreSQL, postgresql://user:password@host:5432/database"),
    ("S3_ENDPOINT", "MinIO or S3, http://host:9000"),
    ("S3_ACCESS_KEY", "its access key"),
    ("S3_SECRET_KEY", "its secret key"),
    ("JOB_IMAGE", "the job image, built from Dockerfile, where the nodes can pull it"),
    ("LAB_IMAGE", "the demo lab's image, built from deploy/lab-demo/Dockerfile"),
)
#: May be left out: results for a backend's AsyncResult, redis://:password@host:6379/0.
OPTIONAL = ("REDIS_URL",)
#: For URLs that name no port.
PORTS = {
    "amqp": 5672,
    "amqps": 5671,
    "postgresql": 5432,
    "http": 80,
    "https": 443,
    "redis": 6379,
    "rediss": 6379,
}
CRDS = ("scaledjobs.keda.sh", "triggerauthentications.keda.sh")
NAMESPACES = ("platform", "labs", "messaging")
OURS = "app.kubernetes.io/part-of=autolabs"
MADE = "autolabs.io/made-by-up"


@dataclass(frozen=True, slots=True)
class Kubectl:
    """kubectl on the cluster of KUBECONFIG."""

    program: str

    def __call__(self, *words: str, stdin: str | None = None, timeout_s: float = 120) -> str:
        """Run it and return what it printed."""
        return run([self.program, *words], stdin=stdin, timeout_s=timeout_s)


def main(command: str, layout: Layout, environ: Mapping[str, str]) -> int:
    """Run one command on the existing cluster; return the exit code."""
    if command == "env":
        _raise_if(list(_missing_variables(environ)))
        print("\n".join(services.export_lines(environ)))
        return 0
    kubectl = Kubectl(_program(layout))
    if command == "up":
        _raise_if(list(problems(kubectl, environ)))
        with tempfile.TemporaryDirectory(prefix="autolabs-") as folder:
            _up(replace(layout, state=Path(folder)), kubectl, environ)
    elif command == "down":
        _raise_if([p for p in _missing_variables(environ) if p.startswith("KUBECONFIG")])
        _down(layout, kubectl)
    else:
        print(kubectl("get", "scaledjobs,jobs,pods", "--namespace", platform_part.NAMESPACE))
    return 0


def _program(layout: Layout) -> str:
    built = programs.KUBERNETES.binary(layout, "kubectl")
    found = shutil.which("kubectl") or (str(built) if built.exists() else None)
    if not found:
        raise LocalClusterError("CLUSTER=existing needs kubectl on PATH")
    return found


def problems(kubectl: Kubectl, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield everything the cluster or the environment lacks."""
    yield from _missing_variables(environ)
    for name in ("AMQP_URL", "DATABASE_URL", "S3_ENDPOINT", *OPTIONAL):
        if value := environ.get(name):
            yield from _unreachable(name, value)
    if environ.get("KUBECONFIG"):
        for crd in CRDS:
            try:
                kubectl("get", "crd", crd, "--output=name", "--request-timeout=10s")
            except CommandError as exc:
                reason = exc.output.strip().splitlines()[-1:] or [str(exc.code)]
                yield f"KEDA >= 2.20.2 in the cluster: CRD {crd}: {reason[0]}"


def _missing_variables(environ: Mapping[str, str]) -> Iterator[str]:
    for name, meaning in NEEDED:
        if not environ.get(name):
            yield f"{name}: {meaning}"


def _unreachable(name: str, url: str) -> Iterator[str]:
    """Yield a sentence if nothing listens there; it never shows the password in the URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or PORTS.get(parts.scheme.partition("+")[0])
    except ValueError as exc:
        yield f"{name}: not a URL ({exc})"
        return
    if not host or not port:
        yield f"{name}: no host and port in it"
        return
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as exc:
        yield f"{name}: nothing answers at {host}:{port} ({exc})"


def _raise_if(found: list[str]) -> None:
    if found:
        lines = "\n".join(f"- {problem}" for problem in found)
        raise LocalClusterError(f"CLUSTER=existing needs:\n{lines}")


def _up(layout: Layout, kubectl: Kubectl, environ: Mapping[str, str]) -> None:
    with step("Make the namespaces that are not there", "1 s"):
        for namespace in NAMESPACES:
            _ensure_namespace(kubectl, namespace)
    platform_part.apply(layout, target(kubectl, environ))


def target(kubectl: Kubectl, environ: Mapping[str, str]) -> platform_part.Target:
    """Pods may need other addresses than this machine (a port-forward): JOBS_* says them."""
    amqp = environ.get("JOBS_AMQP_URL") or environ["AMQP_URL"]
    return platform_part.Target(
        kubectl=kubectl,
        job_image=environ["JOB_IMAGE"],
        urls=Urls(
            amqp_admin=environ.get("SETUP_AMQP_URL") or environ["AMQP_URL"],
            amqp_jobs=amqp,
            amqp_keda=environ.get("KEDA_AMQP_URL") or amqp,
            rabbitmq_api=environ.get("RABBITMQ_API_URL", ""),
            database=environ.get("JOBS_DATABASE_URL") or environ["DATABASE_URL"],
            s3_endpoint=environ.get("JOBS_S3_ENDPOINT") or environ["S3_ENDPOINT"],
            redis=environ.get("JOBS_REDIS_URL") or environ.get("REDIS_URL", ""),
        ),
        s3_access_key=environ["S3_ACCESS_KEY"],
        s3_secret_key=environ["S3_SECRET_KEY"],
        environ={name: environ[name] for name in ("S3_ENDPOINT", "S3_ACCESS_KEY", "S3_SECRET_KEY")},
    )


def _ensure_namespace(kubectl: Kubectl, name: str) -> None:
    if kubectl("get", "namespace", name, "--ignore-not-found", "--output=name"):
        return
    made = {"name": name, "annotations": {MADE: "true"}}
    content = json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": made})
    kubectl("create", "--filename", "-", stdin=content)


def _down(layout: Layout, kubectl: Kubectl) -> None:
    namespace = platform_part.NAMESPACE
    with step("Remove the ScaledJobs, then the labs and the rest of our part", "15 s"):
        for kind in ("scaledjobs.keda.sh", "triggerauthentications.keda.sh"):
            _delete(kubectl, kind, "--namespace", namespace, "--selector", OURS)
        _delete(kubectl, "cronjobs,jobs", "--namespace", namespace, "--selector", OURS)
        _delete(
            kubectl,
            *("pods,services,networkpolicies", "--namespace", "labs"),
            *("--selector", "app.kubernetes.io/managed-by=autolabs-jobs"),
        )
        if folder := platform_part.source(layout):
            keep = without_namespaces(kubectl("kustomize", str(folder)))
            _delete(kubectl, "--filename", "-", stdin=keep)
        for name in ("autolabs-jobs", platform_part.SETUP, "autolabs-keda"):
            _delete(kubectl, "secret", name, "--namespace", namespace)
        for name in NAMESPACES:
            template = f"--output=jsonpath={{.metadata.annotations.{MADE.replace('.', chr(92) + '.')}}}"
            if kubectl("get", "namespace", name, "--ignore-not-found", template) == "true":
                _delete(kubectl, "namespace", name)


def without_namespaces(rendered: str) -> str:
    """Drop the Namespaces of kustomize's output: deleting one takes along what others put there."""
    documents = rendered.split("\n---\n")
    return "\n---\n".join(d for d in documents if "kind: Namespace" not in d.splitlines())


def _delete(kubectl: Kubectl, *words: str, stdin: str | None = None) -> None:
    try:
        kubectl("delete", "--ignore-not-found", "--timeout=90s", *words, stdin=stdin)
    except CommandError as exc:
        if "the server doesn't have a resource type" not in exc.output:
            raise
