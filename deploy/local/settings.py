"""Addresses, ports and names of the local cluster, in one place."""

from __future__ import annotations

KUBERNETES_VERSION = "v1.34.4"
KEDA_VERSION = "2.20.2"
COREDNS_VERSION = "1.15.0"

NODE_NAME = "autolabs-local"
BRIDGE = "autolabs0"  # at most 15 characters
NODE_IP = "10.244.0.1"  # the bridge's own address: the node and the API server live there
POD_CIDR = "10.244.0.0/24"
SERVICE_CIDR = "10.96.0.0/16"
API_SERVICE_IP = "10.96.0.1"  # the first address of the range, by rule
DNS_IP = "10.96.0.10"  # the customary one; set in deploy/local/manifests/coredns.yaml too

API_PORT = 6443
ETCD_PORT = 23790  # not 2379: an etcd of somebody else may be there
ETCD_PEER_PORT = 23800
API_URL = f"https://{NODE_IP}:{API_PORT}"

#: Every TCP port we listen on: (address, port, who).
PORTS: tuple[tuple[str, int, str], ...] = (
    (NODE_IP, API_PORT, "kube-apiserver"),
    ("127.0.0.1", ETCD_PORT, "etcd"),
    ("127.0.0.1", ETCD_PEER_PORT, "etcd"),
    (NODE_IP, 10250, "kubelet"),
    ("127.0.0.1", 10248, "kubelet health"),
    ("127.0.0.1", 10249, "kube-proxy metrics"),
    ("127.0.0.1", 10256, "kube-proxy health"),
    ("127.0.0.1", 10257, "kube-controller-manager"),
    ("127.0.0.1", 10259, "kube-scheduler"),
)

CGROUP = "autolabs-local"  # everything we start lives below this cgroup, pods included
NFT_TABLE = "autolabs-local"
CNI_NETWORK = "autolabs-local"

PAUSE_IMAGE = "registry.gitlab.com/autolabs/local/pause:1"
JOB_IMAGE = "registry.gitlab.com/autolabs/jobs"
CONSOLE_IMAGE = "registry.gitlab.com/autolabs/console"
LAB_IMAGE = "registry.gitlab.com/autolabs/labs/demo:1.0.0"
