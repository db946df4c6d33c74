"""Apply our own part: secrets, deploy/base, the setup Job, then the CronJobs and the ScaledJobs.

The queues have to exist before the ScaledJobs that count them, hence the order.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.local.errors import CommandError, LocalClusterError
from deploy.local.evidence import shown_by
from deploy.local.objects import make_secret, write_kustomization
from deploy.local.paths import Layout
from deploy.local.services import Urls
from deploy.local.settings import JOB_IMAGE
from deploy.local.shell import run, wait_until
from deploy.local.steps import note, step

NAMESPACE = "platform"
SETUP = "autolabs-setup"
APPLY = ("apply", "--server-side", "--force-conflicts", "--field-manager=autolabs-local")

#: Runs kubectl on the cluster that is meant; the local and the existing one differ only in this.
Kubectl = Callable[..., str]


@dataclass(frozen=True, slots=True)
class Target:
    """Where our part goes, and the image and services that it uses there."""

    kubectl: Kubectl
    job_image: str
    urls: Urls
    s3_access_key: str
    s3_secret_key: str
    #: What a command on this machine needs for the object store (S3_*).
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: When the services last began with empty volumes (RFC 3339); a setup before that is void.
    data_since: str = ""


def apply(layout: Layout, target: Target) -> None:
    """Apply our part, what this checkout has of it, and wait for the setup Job."""
    folder = source(layout)
    if folder is None:
        note("no deploy/base in the checkout: our own part is left out")
        return
    with step("Apply namespaces, RBAC, policies and secrets, run the setup Job", "8 s"):
        generated = write_kustomization(
            layout,
            "platform",
            folders=[folder],
            objects=secrets(target),
            images={JOB_IMAGE: target.job_image},
        )
        remove_outdated_setup(target)
        _apply_base(target, generated)
        _wait_for_setup(target)
    with step("Apply the schedules", "2 s"):
        apply_schedules(layout, target)
    with step("Apply the ScaledJobs", "1 s"):
        rendered = render_scaled_jobs(layout, target.job_image, cores=node_cores(target.kubectl))
        target.kubectl(*APPLY, "--filename", "-", stdin=rendered)


def _apply_base(target: Target, folder: Path) -> None:
    try:
        target.kubectl(*APPLY, "--kustomize", str(folder))
    except CommandError as exc:
        if "field is immutable" not in exc.output:
            raise
        # The setup Job of another checkout, with the same image but other steps.
        target.kubectl("delete", "job", SETUP, "--namespace", NAMESPACE, "--cascade=foreground")
        target.kubectl(*APPLY, "--kustomize", str(folder))


def source(layout: Layout) -> Path | None:
    """Return the kustomization to apply: the overlay for local use if there is one."""
    for name in ("overlays/local", "base"):
        folder = layout.checkout / "deploy" / name
        if (folder / "kustomization.yaml").exists():
            return folder
    return None


def secrets(target: Target) -> list[dict[str, Any]]:
    """Return the Secrets as contract: one key per variable, the setup Job with its own broker user."""
    shared = {
        "DATABASE_URL": target.urls.database,
        "S3_ENDPOINT": target.urls.s3_endpoint,
        "S3_ACCESS_KEY": target.s3_access_key,
        "S3_SECRET_KEY": target.s3_secret_key,
    }
    results = {"CELERY_RESULT_BACKEND": target.urls.redis} if target.urls.redis else {}
    return [
        make_secret(NAMESPACE, "autolabs-jobs", {"AMQP_URL": target.urls.amqp_jobs, **shared, **results}),
        make_secret(NAMESPACE, SETUP, {"AMQP_URL": target.urls.amqp_admin, **shared}),
        make_secret(NAMESPACE, "autolabs-keda", {"host": target.urls.amqp_keda}),
    ]


def render_scaled_jobs(layout: Layout, image: str, *, cores: float) -> str:
    """Run `python -m keda` of the checkout; it needs pyyaml, which .venv has."""
    words = [_python(layout), "-m", "keda", "--image", image, "--cores", f"{cores:g}"]
    return run(words, cwd=layout.checkout)


def apply_schedules(layout: Layout, target: Target) -> None:
    """Run `autolabs schedule apply` of the checkout: what operators changed in the bucket stays."""
    # The command reads no files beside its own.
    kubeconfig = layout.state / "kubeconfig-schedules"
    kubeconfig.touch(mode=0o600)
    try:
        kubeconfig.write_text(target.kubectl("config", "view", "--raw", "--minify", "--flatten"))
        run(
            [_python(layout), "-m", "console", "schedule", "apply", "--image", target.job_image],
            cwd=layout.checkout,
            env={**target.environ, "KUBECONFIG": str(kubeconfig)},
        )
    finally:
        kubeconfig.unlink()


def _python(layout: Layout) -> str:
    own = layout.checkout / ".venv" / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def node_cores(kubectl: Kubectl) -> float:
    """Return the CPU cores of the nodes that take our pods."""
    nodes = json.loads(kubectl("get", "nodes", "--output=json"))["items"]
    return sum(_cores(node["status"]["allocatable"]["cpu"]) for node in nodes if _takes_any_pod(node))


def _takes_any_pod(node: dict[str, Any]) -> bool:
    taints = node["spec"].get("taints", ())
    return not any(taint["effect"] in ("NoSchedule", "NoExecute") for taint in taints)


def _cores(cpu: str) -> float:
    return float(cpu[:-1]) / 1000 if cpu.endswith("m") else float(cpu)


def remove_outdated_setup(target: Target) -> None:
    """Delete the setup Job unless it did its work with this image, on the services of today."""
    image, made = "{.spec.template.spec.containers[0].image}", "{.metadata.creationTimestamp}"
    template = f"{image} {{.status.succeeded}} {made}"
    try:
        seen = target.kubectl(
            *("get", "job", SETUP, "--namespace", NAMESPACE), f"--output=jsonpath={template}"
        )
    except CommandError:
        return
    words = seen.split()
    if words[:2] != [target.job_image, "1"] or words[2] < target.data_since:
        target.kubectl("delete", "job", SETUP, "--namespace", NAMESPACE, "--cascade=foreground")


def _wait_for_setup(target: Target, *, timeout_s: float = 120) -> None:
    template = "{.status.succeeded} {.status.conditions[?(@.type=='Failed')].message}"

    def missing() -> str | None:
        seen = target.kubectl(
            *("get", "job", SETUP, "--namespace", NAMESPACE), f"--output=jsonpath={template}"
        ).strip()
        if seen == "1":
            return None
        if seen:
            raise LocalClusterError(f"the Job {SETUP} failed: {seen}\n{_setup_log(target)}")
        return "the Job is not complete"

    try:
        wait_until(f"the Job {SETUP} is complete", missing, timeout_s=timeout_s, every_s=0.3)
    except LocalClusterError as exc:
        if "failed" in str(exc):
            raise
        raise LocalClusterError(f"{exc}\n{_setup_log(target)}") from exc


def _setup_log(target: Target) -> str:
    commands = (
        ("logs", f"job/{SETUP}", "--namespace", NAMESPACE, "--all-containers", "--tail=40"),
        ("get", "pods", "--namespace", NAMESPACE, "--selector", f"job-name={SETUP}"),
    )
    return shown_by(target.kubectl, commands)
