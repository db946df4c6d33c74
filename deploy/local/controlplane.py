"""etcd, the API server, the controller manager and the scheduler as processes of this machine."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from pathlib import Path

from deploy.local import daemons, kubeconfig, programs
from deploy.local.daemons import Daemon
from deploy.local.errors import LocalClusterError, with_log
from deploy.local.paths import Layout
from deploy.local.settings import (
    API_PORT,
    API_URL,
    ETCD_PEER_PORT,
    ETCD_PORT,
    NODE_IP,
    POD_CIDR,
    SERVICE_CIDR,
)
from deploy.local.shell import wait_until


def etcd(layout: Layout) -> Daemon:
    """Return etcd, for one client: the API server."""
    pki, client = layout.pki, f"https://127.0.0.1:{ETCD_PORT}"
    peer = f"http://127.0.0.1:{ETCD_PEER_PORT}"
    return Daemon(
        "etcd",
        (
            str(programs.ETCD.binary(layout, "etcd")),
            f"--data-dir={layout.state / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            f"--cert-file={pki / 'etcd.crt'}",
            f"--key-file={pki / 'etcd.key'}",
            f"--trusted-ca-file={pki / 'ca.crt'}",
            "--client-cert-auth",
            "--unsafe-no-fsync",  # the data does not outlive the cluster
            "--log-level=warn",
        ),
    )


def api_server(layout: Layout) -> Daemon:
    """Return the API server, on the bridge alone."""
    pki = layout.pki
    return Daemon(
        "kube-apiserver",
        (
            str(programs.KUBERNETES.binary(layout, "kube-apiserver")),
            f"--bind-address={NODE_IP}",
            f"--advertise-address={NODE_IP}",
            f"--secure-port={API_PORT}",
            f"--etcd-servers=https://127.0.0.1:{ETCD_PORT}",
            f"--etcd-cafile={pki / 'ca.crt'}",
            f"--etcd-certfile={pki / 'etcd.crt'}",
            f"--etcd-keyfile={pki / 'etcd.key'}",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            # The node's name resolves nowhere: `kubectl logs` has to use its address.
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-certificate-authority={pki / 'ca.crt'}",
            f"--kubelet-client-certificate={pki / 'apiserver-kubelet.crt'}",
            f"--kubelet-client-key={pki / 'apiserver-kubelet.key'}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki / 'service-account.key'}",
            f"--service-account-signing-key-file={pki / 'service-account.key'}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--profiling=false",
        ),
    )


def controller_manager(layout: Layout) -> Daemon:
    """Return the controller manager."""
    pki = layout.pki
    return Daemon(
        "kube-controller-manager",
        (
            str(programs.KUBERNETES.binary(layout, "kube-controller-manager")),
            f"--kubeconfig={layout.config / 'controller-manager.kubeconfig'}",
            "--bind-address=127.0.0.1",
            f"--cluster-cidr={POD_CIDR}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            f"--root-ca-file={pki / 'ca.crt'}",
            f"--service-account-private-key-file={pki / 'service-account.key'}",
            "--use-service-account-credentials=true",
            # A lost lease would end the process, and there is no second one to take over.
            "--leader-elect=false",
            "--profiling=false",
        ),
    )


def scheduler(layout: Layout) -> Daemon:
    """Return the scheduler."""
    return Daemon(
        "kube-scheduler",
        (
            str(programs.KUBERNETES.binary(layout, "kube-scheduler")),
            f"--kubeconfig={layout.config / 'scheduler.kubeconfig'}",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
            "--profiling=false",
        ),
    )


def write_kubeconfigs(layout: Layout) -> None:
    """Write one kubeconfig per client, and put kubectl where `env` points."""
    for name in ("controller-manager", "scheduler", "proxy", "node"):
        kubeconfig.write(layout.config / f"{name}.kubeconfig", layout.pki, name)
    kubeconfig.write(layout.kubeconfig, layout.pki, "admin")
    layout.kubectl.unlink(missing_ok=True)
    layout.kubectl.symlink_to(programs.KUBERNETES.binary(layout, "kubectl"))


def start_api(layout: Layout) -> None:
    """Start etcd and the API server; return when the API is ready, RBAC bootstrap included."""
    daemons.start(layout, etcd(layout))
    daemons.start(layout, api_server(layout))
    wait_for_api(layout, timeout_s=90)


def wait_for_api(layout: Layout, *, timeout_s: float) -> None:
    """Return when /readyz says ok; the error shows the log."""

    def missing() -> str | None:
        for name in ("etcd", "kube-apiserver"):
            if not daemons.is_alive(layout, name):
                raise with_log(f"{name} ended by itself", daemons.log_path(layout, name))
        return api_problem(layout.pki)

    try:
        wait_until("the API server is ready", missing, timeout_s=timeout_s)
    except LocalClusterError as exc:
        if str(exc).startswith("the API server"):
            raise with_log(str(exc), daemons.log_path(layout, "kube-apiserver")) from exc
        raise


def api_problem(pki: Path) -> str | None:
    """Return what keeps /readyz from saying ok, or None."""
    try:
        context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(f"{API_URL}/readyz", timeout=2) as answer:
            text = answer.read().decode()
        return None if text == "ok" else text[:200]
    except urllib.error.HTTPError as exc:
        waiting = [line for line in exc.read().decode().splitlines() if line.startswith("[-]")]
        return "; ".join(waiting)[:200] or f"HTTP {exc.code}"
    except OSError as exc:
        return str(exc)


def start_controllers(layout: Layout) -> None:
    """Start the controller manager and the scheduler unless they run."""
    for daemon in (controller_manager(layout), scheduler(layout)):
        daemons.start(layout, daemon)
