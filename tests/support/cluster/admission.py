"""Manifests of labs, sent to the API server by the job's ServiceAccount, as the job sends them."""

from __future__ import annotations

import copy
import json
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dispatcher.tasks import CreateLabPod
from jobs.cluster.access import ClusterAccess, kubeconfig_access
from jobs.cluster.client import ApiError, Cluster
from jobs.cluster.lab_objects import collections
from jobs.config.lab_settings import LabSettings
from jobs.config.manifests import LabManifests, make_lab_manifests
from jobs.config.settings_document import parse_document
from tests.support.cluster.own_namespace import service_account_access

Manifest = dict[str, Any]
Change = Callable[[Manifest], object]

CONFIGS = Path(__file__).parents[3] / "jobs" / "config" / "default_configs"
JOB = "system:serviceaccount:platform:celery-workers-sa"
PROBE = "autolabs-admission-probe"
#: Seconds after which something hangs, on however slow a machine.
HANGS_S = 180


def kubectl(*words: str, stdin: Manifest | None = None, check: bool = True) -> str:
    """Return what kubectl said, or fail with it."""
    done = subprocess.run(
        ["kubectl", *words],
        input=json.dumps(stdin) if stdin else None,
        capture_output=True,
        text=True,
        timeout=HANGS_S,
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


@dataclass(frozen=True)
class _InTheNameOf(ClusterAccess):
    user: str = ""

    def authorization(self) -> dict[str, str]:
        return {**super().authorization(), "impersonate-user": self.user}


def as_job() -> Cluster:
    """Return the API server for the job: with the token of its own ServiceAccount."""
    return Cluster(service_account_access("platform"))


def as_probe() -> Cluster:
    """Return the API server for a user whom an operator impersonates."""
    view = kubectl("config", "view", "--raw", "--flatten", "--minify")
    operator = kubeconfig_access(view.encode())
    access = _InTheNameOf(
        operator.server, operator.ca_pem, client_pem_file=operator.client_pem_file, user=PROBE
    )
    cluster = Cluster(access)
    if operator.client_pem_file:
        Path(operator.client_pem_file).unlink()  # read by now
    return cluster


def dry_run(who: Cluster, manifest: Manifest, *, take_over: bool = False) -> str:
    """Apply as the job does, but without effect; return how it is refused, or nothing."""
    metadata = manifest["metadata"]
    path = f"{collections(metadata['namespace'])[manifest['kind']]}/{metadata['name']}"
    try:
        who.apply(path, manifest, take_over=take_over, dry_run=True)
    except ApiError as exc:
        return exc.message
    return ""


def refusal_of_change(who: Cluster, manifest: Manifest, change: Change) -> str:
    """Return why a manifest is refused, changed and sent by somebody."""
    changed = copy.deepcopy(manifest)
    change(changed)
    return refusal(dry_run(who, changed))


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
        parse_document(LabSettings, settings, (CONFIGS / settings).read_bytes()),
        namespace="labs",
        pod_template=(CONFIGS / "manifests" / "lab-pod-template.yaml").read_bytes(),
        network_policy_template=(CONFIGS / "manifests" / "network-policy-template.yaml").read_bytes(),
        object_label=secrets.token_hex(10),
    )


@pytest.fixture
def manifests() -> LabManifests:
    return make_manifests()


@pytest.fixture(scope="module")
def unguarded_namespace() -> Iterator[str]:
    """A namespace without Pod Security and limits, where RBAC lets the job and a probe do everything."""
    name = f"unguarded-{secrets.token_hex(4)}"
    kubectl("create", "namespace", name)
    who = ("--serviceaccount=platform:celery-workers-sa", f"--user={PROBE}")
    kubectl("create", "rolebinding", "all", "--clusterrole=admin", *who, "-n", name)
    kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, f"--timeout={HANGS_S // 2}s")
    yield name
    kubectl("delete", "namespace", name, "--wait=false")
