"""Start the cluster's processes, or find that they all run already."""

from __future__ import annotations

import json

from deploy.local import (
    certs,
    cgroups,
    controlplane,
    daemons,
    fingerprint,
    images,
    leftovers,
    network,
    node,
    outside,
)
from deploy.local.daemons import Daemon
from deploy.local.errors import CommandError, LocalClusterError
from deploy.local.images import Image
from deploy.local.paths import Layout
from deploy.local.settings import NODE_NAME
from deploy.local.shell import run, wait_until
from deploy.local.steps import note, step

DAEMONS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "containerd",
    "kubelet",
    "kube-proxy",
)


def all_daemons(layout: Layout) -> list[Daemon]:
    """Return what has to run, with this checkout's programs and settings."""
    return [
        controlplane.etcd(layout),
        controlplane.api_server(layout),
        controlplane.controller_manager(layout),
        controlplane.scheduler(layout),
        node.containerd(layout),
        node.kubelet(layout),
        node.kube_proxy(layout),
    ]


def key(layout: Layout) -> str:
    """Name this exact set of programs and settings; another key needs a new start."""
    parts = [word for daemon in all_daemons(layout) for word in (daemon.name, *daemon.argv)]
    configs = (node.kubelet_config, node.kube_proxy_config, node.cni_config)
    parts += [json.dumps(make(layout), sort_keys=True) for make in configs]
    return fingerprint.of_parts([*parts, node.CONTAINERD_TOML, network.RULES])


def problem(layout: Layout) -> str | None:
    """Return why the cluster cannot be kept as it is, or None when it runs and fits."""
    if reason := down_reason(layout):
        return reason
    if (layout.state / "complete").read_text().strip() != key(layout):
        return "the running cluster was started with other programs or settings"
    return None


def down_reason(layout: Layout) -> str | None:
    """Return what is missing for a running cluster, whichever checkout started it."""
    if not (layout.state / "complete").exists():
        return "no cluster was started"
    for name in DAEMONS:
        if not daemons.is_alive(layout, name):
            return f"{name} is not running"
    return controlplane.api_problem(layout.pki)


def ensure(layout: Layout, wanted: list[Image]) -> None:
    """Have a cluster of this checkout's programs running, its images imported."""
    reason = problem(layout)
    if reason is None:
        note("the cluster is up already")
        cgroups.enter()
        images.ensure_imported(layout, wanted)
        return
    if leftovers.exist(layout):
        with step(f"Stop the cluster: {reason}", "3 s"):
            leftovers.clear(layout)
    _start(layout, wanted)


def _start(layout: Layout, wanted: list[Image]) -> None:
    layout.make_folders()
    for name in DAEMONS:
        daemons.log_path(layout, name).unlink(missing_ok=True)
    cgroups.enter()
    with step("Make certificates, bridge and settings", "1 s"):
        certs.make_all(layout.pki)
        controlplane.write_kubeconfigs(layout)
        node.write_configs(layout)
        outside.remember(layout)
        network.create(layout)
    with step("Start etcd, the API server and containerd", "4 s"):
        daemons.start(layout, controlplane.etcd(layout))
        daemons.start(layout, controlplane.api_server(layout))
        node.start_containerd(layout)
    images.ensure_imported(layout, wanted)
    with step("Wait for the API server, start the controllers and the node", "5 s"):
        controlplane.start_api(layout)
        controlplane.start_controllers(layout)
        node.start_node(layout)
    (layout.state / "complete").write_text(key(layout))


def wait_for_node(layout: Layout) -> None:
    """Return when the node is Ready and pods can be scheduled; restart what ended too early."""

    def missing() -> str | None:
        # They may look for their RBAC roles a moment before these are there, and exit.
        controlplane.start_controllers(layout)
        node.start_node(layout)
        template = "{.status.conditions[?(@.type=='Ready')].status} {.spec.taints}"
        try:
            seen = kubectl(layout, "get", "node", NODE_NAME, "-o", f"jsonpath={template}")
        except CommandError as exc:
            return exc.output.strip() or str(exc.code)
        return None if seen.strip() == "True" else f"node Ready, taints: {seen}"

    try:
        wait_until("the node is Ready", missing, timeout_s=60, every_s=0.5)
    except LocalClusterError as exc:
        raise LocalClusterError(f"{exc}; see {daemons.log_path(layout, 'kubelet')}") from exc


def kubectl(layout: Layout, *words: str, stdin: str | None = None, timeout_s: float = 120) -> str:
    """Run our kubectl on our cluster, whatever KUBECONFIG says."""
    options = ("--kubeconfig", layout.kubeconfig, "--cache-dir", layout.state / "kubectl-cache")
    return run([layout.kubectl, *options, *words], stdin=stdin, timeout_s=timeout_s)


def stop(layout: Layout) -> None:
    """Leave nothing of the cluster but the image store and the logs."""
    leftovers.clear(layout)
