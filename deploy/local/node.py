"""The node's own processes: containerd, the kubelet and kube-proxy, with their configuration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from deploy.local import daemons, programs
from deploy.local.daemons import Daemon
from deploy.local.errors import CommandError, LocalClusterError, with_log
from deploy.local.paths import Layout
from deploy.local.settings import (
    BRIDGE,
    CGROUP,
    CNI_NETWORK,
    DNS_IP,
    NODE_IP,
    NODE_NAME,
    PAUSE_IMAGE,
    POD_CIDR,
)
from deploy.local.shell import run, wait_until

CONTAINERD_TOML = """\
version = 2
root = "{root}"
state = "{state}/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
  address = "{socket}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Without CAP_SYS_RESOURCE runc dies with "can't get final child's PID from pipe: EOF".
  restrict_oom_score_adj = true
  enable_unprivileged_ports = true
  # /run/netns is shared with other software: ours go where they cannot be mistaken.
  netns_mounts_under_state_dir = true
  max_container_log_line_size = 262144
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{config}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""


def containerd(layout: Layout) -> Daemon:
    """Return containerd, with sockets and store of its own."""
    config = layout.config / "containerd.toml"
    program = shutil.which("containerd") or "/usr/bin/containerd"
    return Daemon("containerd", (program, "--config", str(config)))


def kubelet(layout: Layout) -> Daemon:
    """Return the kubelet."""
    return Daemon(
        "kubelet",
        (
            str(programs.KUBERNETES.binary(layout, "kubelet")),
            f"--config={layout.config / 'kubelet.json'}",
            f"--kubeconfig={layout.config / 'node.kubeconfig'}",
            f"--root-dir={layout.state / 'kubelet'}",
            f"--hostname-override={NODE_NAME}",
            f"--node-ip={NODE_IP}",
        ),
    )


def kube_proxy(layout: Layout) -> Daemon:
    """Return kube-proxy."""
    binary = programs.KUBERNETES.binary(layout, "kube-proxy")
    config = layout.config / "kube-proxy.json"
    return Daemon("kube-proxy", (str(binary), f"--config={config}"))


def kubelet_config(layout: Layout) -> dict[str, Any]:
    """Return the kubelet's settings."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_IP,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(layout.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(layout.pki / "kubelet.crt"),
        "tlsPrivateKeyFile": str(layout.pki / "kubelet.key"),
        "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
        "podLogsDir": str(layout.logs / "pods"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,  # a lower one needs CAP_SYS_RESOURCE
        "clusterDNS": [DNS_IP],
        "clusterDomain": "cluster.local",
        "resolvConf": str(layout.config / "resolv.conf"),
        "maxPods": 250,
        # Labs ask for ephemeral storage; without this the node reports none to give.
        "localStorageCapacityIsolation": True,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        # Nothing can be pulled again, so nothing may be collected: 100 turns the collection off.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "imageMaximumGCAge": "0s",
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        # The default of 50 events a second delays what people read during a burst, not pods. 0 would be
        # client-go's default of 5.
        "eventRecordQPS": 500,
        "eventBurst": 1000,
        "containerLogMaxSize": "10Mi",
        "containerLogMaxFiles": 3,
        # kube-proxy runs in nftables mode: no rule of ours is to reach iptables.
        "makeIPTablesUtilChains": False,
        "enableControllerAttachDetach": False,
        "shutdownGracePeriod": "0s",
        "logging": {"verbosity": 1},
    }


def kube_proxy_config(layout: Layout) -> dict[str, Any]:
    """Return kube-proxy's settings."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(layout.config / "proxy.kubeconfig")},
        "hostnameOverride": NODE_NAME,
        "clusterCIDR": POD_CIDR,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "nodePortAddresses": [f"{NODE_IP}/32"],  # nothing is to be reachable from outside
        "oomScoreAdj": 0,
        # Zeros leave the machine's connection tracking settings alone.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        # A lab's address is to answer as soon as its pod is Ready; the default gathers for 1 s.
        "nftables": {"minSyncPeriod": "100ms"},
    }


def cni_config(layout: Layout) -> dict[str, Any]:
    """Return the one pod network."""
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "hairpinMode": True,
        # Masquerading is one nftables rule of ours instead of iptables chains for every pod.
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "dataDir": str(layout.state / "cni"),
            "ranges": [[{"subnet": POD_CIDR, "gateway": NODE_IP}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return {"cniVersion": "0.4.0", "name": CNI_NETWORK, "plugins": [bridge]}


def resolv_conf() -> str:
    """Return the machine's name servers without those that only answer on its own loopback."""
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        lines = Path(path).read_text().splitlines() if Path(path).exists() else []
        servers = [line for line in lines if line.startswith("nameserver ")]
        usable = [line for line in servers if not line.split()[1].startswith(("127.", "::1"))]
        if usable:
            return "\n".join(usable) + "\n"
    return ""


def write_configs(layout: Layout) -> None:
    """Write every configuration file of the node."""
    toml = CONTAINERD_TOML.format(
        root=layout.image_store,
        state=layout.run,
        socket=layout.containerd_socket,
        pause=PAUSE_IMAGE,
        config=layout.config,
    )
    (layout.config / "containerd.toml").write_text(toml)
    (layout.config / "resolv.conf").write_text(resolv_conf())
    (layout.config / "cni").mkdir(exist_ok=True)
    for name, content in (
        ("kubelet.json", kubelet_config(layout)),
        ("kube-proxy.json", kube_proxy_config(layout)),
        ("cni/10-autolabs.conflist", cni_config(layout)),
    ):
        (layout.config / name).write_text(json.dumps(content, indent=1))


def ctr(layout: Layout, *words: str | Path, timeout_s: float = 120) -> str:
    """Run containerd's own client on the images and containers of Kubernetes."""
    argv = ["ctr", "--address", layout.containerd_socket, "--namespace", "k8s.io", *words]
    return run(argv, timeout_s=timeout_s)


def start_containerd(layout: Layout) -> None:
    """Start containerd without the containers of an earlier run; a broken store is made anew."""
    try:
        _start_containerd(layout)
        if old := ctr(layout, "containers", "ls", "--quiet").split():
            ctr(layout, "containers", "rm", *old)
            _restart_containerd(layout)  # its CRI part still remembers them
    except LocalClusterError:
        _stop_containerd(layout)
        shutil.rmtree(layout.image_store, ignore_errors=True)
        _start_containerd(layout)


def _start_containerd(layout: Layout) -> None:
    daemons.start(layout, containerd(layout))

    def missing() -> str | None:
        if not daemons.is_alive(layout, "containerd"):
            log = daemons.log_path(layout, "containerd")
            raise with_log("containerd ended by itself", log)
        try:
            plugins = ctr(layout, "plugins", "ls", timeout_s=5)
        except CommandError as exc:
            return exc.output.strip() or str(exc.code)
        cri = [line.split() for line in plugins.splitlines() if " cri " in line]
        return None if cri and cri[0][-1] == "ok" else f"CRI plugin: {cri}"

    wait_until("containerd answers", missing, timeout_s=30)


def _stop_containerd(layout: Layout) -> None:
    pid = daemons.pid_of(layout, "containerd")
    if pid is not None:
        daemons.end([pid], grace_s=5)


def _restart_containerd(layout: Layout) -> None:
    _stop_containerd(layout)
    _start_containerd(layout)


def start_node(layout: Layout) -> None:
    """Start the kubelet and kube-proxy unless they run."""
    daemons.start(layout, kubelet(layout))
    daemons.start(layout, kube_proxy(layout))
