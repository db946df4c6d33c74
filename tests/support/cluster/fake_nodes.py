"""Nodes that do not exist: Pods that are bound to them are Running and Ready without any container.

    with FakeNodes.create(2, folder) as nodes:
        create(nodes.bound(pod))

Nothing else is scheduled there. At the end the nodes are gone, and every Pod that is bound to them, whatever
its namespace; so is what an earlier run left that was killed.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from jobs.cluster.client import Manifest
from tests.support.cluster.bulk_api import BulkApi
from tests.support.cluster.kwok import Kwok
from tests.support.cluster.run_marks import MARK, is_left_over, own_mark
from tests.support.waiting import eventually

#: Label and taint: its value names the run.
LABEL = "autolabs.io/fake-node"
#: Label without which kwok leaves a node alone.
ALIVE = "autolabs.io/fake-node-is-alive"
NODES = "/api/v1/nodes"
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
#: Seconds after which something hangs, on however slow a machine.
HANGS_S = 180.0
_ROOM = {"cpu": "10000", "memory": "100Ti", "ephemeral-storage": "100Ti", "pods": "100000"}


@dataclass
class FakeNodes:
    """The nodes of one run."""

    run: str
    names: list[str]
    kwok: Kwok = field(repr=False)
    api: BulkApi = field(repr=False)
    _turn: Iterator[str] = field(repr=False)

    @classmethod
    def create(cls, count: int, folder: Path) -> FakeNodes:
        """Return that many nodes, Ready; kwok's log is in the folder."""
        api, run = BulkApi(), uuid.uuid4().hex[:8]
        remove_left_over(api)
        names = [f"fake-{run}-{number}" for number in range(count)]
        kwok = Kwok.start(f"{ALIVE}={run}", folder)
        nodes = cls(run, names, kwok, api, itertools.cycle(names))
        try:
            api.each(names, lambda name: api.call("POST", NODES, _manifest(name, run)))
            nodes._wait_until_ready()
        except BaseException:
            nodes.remove()
            raise
        return nodes

    def __enter__(self) -> FakeNodes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def bound(self, pod: Manifest, node: str = "") -> Manifest:
        """Return the manifest of a Pod, bound to a node, or to each in turn."""
        tolerations = [*pod["spec"].get("tolerations", []), {"key": LABEL, "operator": "Exists"}]
        placed = {"nodeName": node or next(self._turn), "tolerations": tolerations}
        return {**pod, "spec": {**pod["spec"], **placed}}

    def end_heartbeat(self, node: str) -> None:
        """Let a node go away, which the cluster notices 50 s later (--node-monitor-grace-period).

        Its Pods are still there then, Running and not Ready, and one that is deleted stays: nobody is there
        to end it.
        """
        self.api.call("PATCH", f"{NODES}/{node}", {"metadata": {"labels": {ALIVE: None}}})

    def wait_until_away(self, node: str) -> None:
        """Return when the cluster has noticed."""
        eventually(lambda: self.ready(node) == "Unknown", HANGS_S, what=f"node {node} is NotReady")

    def ready(self, node: str) -> str:
        """Return the status of a node's condition Ready: True, False or Unknown."""
        return _ready(self.api.call("GET", f"{NODES}/{node}"))

    def remove(self) -> None:
        """Remove the nodes and all that is bound to them, and end kwok."""
        try:
            self.kwok.end()
        finally:
            with self.api:
                _remove(self.api, self.names)

    def evidence(self) -> str:
        found = [f"{name} Ready={self.ready(name)}" for name in self.names]
        return "\n".join([*found, self.kwok.tail()])

    def _wait_until_ready(self) -> None:
        own = [{"key": LABEL, "value": self.run, "effect": "NoSchedule"}]

        def usable() -> bool:
            self.kwok.check()
            nodes = self.api.items(NODES, labelSelector=f"{LABEL}={self.run}")
            return all(_ready(node) == "True" and node["spec"]["taints"] == own for node in nodes)

        eventually(usable, HANGS_S, what=f"{len(self.names)} fake nodes are Ready")


def remove_left_over(api: BulkApi) -> None:
    """Remove the nodes of runs that were killed, and all that is bound to them."""
    left = [node for node in api.items(NODES, labelSelector=LABEL) if is_left_over(node)]
    _remove(api, [node["metadata"]["name"] for node in left])


def _remove(api: BulkApi, names: list[str]) -> None:
    if not names:
        return
    # One walk for all nodes: after ten thousand deletions each takes etcd seconds.
    bound = {
        (pod["metadata"]["namespace"], pod["spec"].get("nodeName", "")) for pod in api.items("/api/v1/pods")
    }
    for namespace, node in sorted(bound):
        if node in names:
            api.delete_all(f"/api/v1/namespaces/{namespace}/pods", fieldSelector=f"spec.nodeName={node}")
    for name in names:
        api.call("DELETE", f"{NODES}/{name}")
        # The garbage collector would, later.
        api.call("DELETE", f"{_LEASES}/{name}")


def _ready(node: Manifest) -> str:
    conditions = node.get("status", {}).get("conditions", [])
    return next((str(one["status"]) for one in conditions if one["type"] == "Ready"), "none yet")


def _manifest(name: str, run: str) -> Manifest:
    labels: dict[str, Any] = {LABEL: run, ALIVE: run, "kubernetes.io/hostname": name}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": {MARK: own_mark()}},
        "spec": {"taints": [{"key": LABEL, "value": run, "effect": "NoSchedule"}]},
        "status": {"allocatable": _ROOM, "capacity": _ROOM},
    }
