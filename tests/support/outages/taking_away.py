"""Take away one part of a running platform for a while; each returns when the part serves again.

Where a part may be away for as long as we like, `seen` says when that was long enough.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pika
import psycopg2

from console.access import open_cluster
from deploy.local import cgroups, controlplane, daemons
from deploy.local.paths import Layout
from deploy.local.shell import run
from jobs.cluster.client import Cluster
from keda.podspec import READY_PORT
from tests.support.waiting import eventually

#: Seconds for which the API server does not answer at most: containers wait 15 for an answer.
API_SERVER_S = 20.0
#: Containers that are killed, and the most seconds that each had its message before.
KILLS, LONGEST_S = 8, 1.2
#: In /proc/net/tcp.
_LISTENS = "0A"
READY_S = 120.0
_START_API = """
import os
from deploy.local import controlplane
from deploy.local.paths import Layout
controlplane.start_api(Layout.from_env(os.environ))
"""


def kubectl(*words: str) -> str:
    return run(["kubectl", *words], timeout_s=60)


@cache
def _cluster() -> Cluster:
    """Return the cluster for what is asked again and again."""
    return open_cluster(os.environ)


@dataclass(frozen=True)
class Workload:
    """The one Pod of a Deployment."""

    namespace: str
    name: str

    def pods(self) -> list[dict[str, Any]]:
        label = "app" if self.name == "keda-operator" else "app.kubernetes.io/name"
        selector = f"{label}={self.name}"
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        return _cluster().list_items(path, labelSelector=selector)[0]

    def delete_pod(self, *, force: bool) -> None:
        """Delete the Pod and wait until another is Ready."""
        (pod,) = self.pods()
        options = ["--grace-period=0", "--force"] if force else []
        name = pod["metadata"]["name"]
        kubectl("delete", "pod", name, "--namespace", self.namespace, "--wait=false", *options)
        self.wait_ready(other_than=pod["metadata"]["uid"])

    def scale(self, replicas: int) -> None:
        kubectl("scale", f"deployment/{self.name}", "--namespace", self.namespace, f"--replicas={replicas}")

    def wait_gone(self) -> None:
        eventually(lambda: not self.pods(), 60, what=f"no Pod of {self.name}")

    def wait_ready(self, *, other_than: str = "") -> None:
        def ready() -> bool:
            return any(_is_ready(pod) for pod in self.pods() if pod["metadata"]["uid"] != other_than)

        eventually(ready, READY_S, what=f"a Pod of {self.name} is Ready")

    def restarts(self) -> int:
        statuses = [one for pod in self.pods() for one in pod["status"].get("containerStatuses", [])]
        return sum(one["restartCount"] for one in statuses)


RABBITMQ = Workload("messaging", "rabbitmq")
POSTGRESQL = Workload("infrastructure", "postgresql")
MINIO = Workload("infrastructure", "minio")
KEDA = Workload("keda", "keda-operator")


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", [])
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def wait_until_all_serve() -> None:
    """Return when no part is away; an outage whose test failed may have left one behind."""
    controlplane.wait_for_api(Layout.from_env(os.environ), timeout_s=60)
    for workload in (RABBITMQ, POSTGRESQL, MINIO, KEDA):
        workload.wait_ready()
    _wait_for_broker()
    _wait_for_database()


def delete_broker() -> None:
    RABBITMQ.delete_pod(force=True)
    _wait_for_broker()


def kill_broker() -> None:
    """End the server with SIGKILL; its container is started again in the same Pod."""
    before = RABBITMQ.restarts()
    beam = "kill -9 $(cat /proc/[0-9]*/stat | awk '$2 == \"(beam.smp)\" {print $1}')"
    kubectl("exec", "--namespace", RABBITMQ.namespace, "deployment/rabbitmq", "--", "sh", "-c", beam)
    eventually(lambda: RABBITMQ.restarts() > before, 60, what="the broker was restarted")
    RABBITMQ.wait_ready()
    _wait_for_broker()


def _wait_for_broker() -> None:
    def answers() -> bool:
        try:
            pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"])).close()
        except (pika.exceptions.AMQPError, OSError):
            return False
        return True

    eventually(answers, READY_S, what="the broker takes connections")


def restart_database() -> None:
    POSTGRESQL.delete_pod(force=False)
    _wait_for_database()


def _wait_for_database() -> None:
    def answers() -> bool:
        try:
            psycopg2.connect(os.environ["DATABASE_URL"], connect_timeout=5).close()
        except psycopg2.OperationalError:  # it still starts, or still shuts down
            return False
        return True

    eventually(answers, READY_S, what="the database takes connections")


def freeze_api_server(seen: Callable[[], bool]) -> None:
    """Let the API server take connections and answer nothing, API_SERVER_S at most."""
    layout = Layout.from_env(os.environ)
    pid = daemons.pid_of(layout, "kube-apiserver")
    assert pid is not None, "the API server does not run"
    deadline = time.monotonic() + API_SERVER_S
    os.kill(pid, signal.SIGSTOP)
    try:
        # A container need not have asked it by then: while it is frozen, none is started.
        eventually(lambda: seen() or time.monotonic() >= deadline, 2 * API_SERVER_S)
    finally:
        os.kill(pid, signal.SIGCONT)
    controlplane.wait_for_api(layout, timeout_s=60)


def kill_api_server() -> None:
    """End the API server with SIGKILL, and start it as `make up` does."""
    layout = Layout.from_env(os.environ)
    pid = daemons.pid_of(layout, "kube-apiserver")
    assert pid is not None, "the API server does not run"
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not daemons.is_alive(layout, "kube-apiserver"), 10, what="the API server is gone")
    # By another process, so that it is no child of this one.
    run([sys.executable, "-c", _START_API], cwd=layout.checkout)


def kill_operator() -> None:
    KEDA.delete_pod(force=True)


def stop_store(seen: Callable[[], bool]) -> None:
    MINIO.scale(0)
    try:
        MINIO.wait_gone()
        eventually(seen, READY_S, what="a container met the store's absence")
    finally:
        MINIO.scale(1)
    MINIO.wait_ready()


def kill_containers(more: Callable[[], bool]) -> int:
    """Kill containers of jobs that hold a message, at any moment, from the node; return how many.

    It ends after KILLS, or when `more` says that nothing is left to do for them.
    """
    killed = 0
    while killed < KILLS and (busy := _wait_for_busy(more)):
        pid = random.choice(busy)
        time.sleep(random.uniform(0, LONGEST_S))
        if _holds_a_message(pid):
            daemons.end([pid], grace_s=0)
            killed += 1
    return killed


def _wait_for_busy(more: Callable[[], bool]) -> list[int]:
    """Return the containers that hold a message; none when nothing is left to do for them."""
    while more():
        if busy := [pid for pid in cgroups.members("kubepods") if _holds_a_message(pid)]:
            return busy
        time.sleep(0.05)  # the search takes a core from those that are searched for
    return []


def _holds_a_message(pid: int) -> bool:
    """Tell whether a process is a job's, and listens as they do only while they have a message."""
    folder = Path("/proc") / str(pid)
    try:
        if (folder / "cmdline").read_bytes() != b"python3\0-m\0jobs\0":
            return False
        tables = [(folder / "net" / name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    except OSError:  # it has ended
        return False
    sockets = [line.split() for table in tables for line in table]
    return any(one[1].endswith(f":{READY_PORT:04X}") and one[3] == _LISTENS for one in sockets)
