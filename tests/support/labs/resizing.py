"""A lab that runs on a module's own platform, asked for other resources, and what its container then has."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dispatcher.broker import topology
from dispatcher.quantities import parse_quantity
from dispatcher.tasks import CREATE_LAB_POD, SCALE_LAB_RESOURCES
from jobs.cluster.client import Manifest
from jobs.cluster.resize_pod import NOTE
from jobs.config.naming import lab_object_name
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.containers.container import Process
from tests.support.factories import create_kwargs
from tests.support.waiting import eventually

#: cpu.max of cgroup v2 in one line, or v1's quota and period; then the memory limit in bytes.
_READ_CGROUP = (
    "cd /sys/fs/cgroup; if [ -e cpu.max ]; then cat cpu.max memory.max;"
    " else echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us); cat memory/memory.limit_in_bytes; fi"
)
#: The start time, in clock ticks since the machine's, is the 22nd field (proc_pid_stat(5)).
_READ_START = "cut -d' ' -f22 /proc/1/stat"


@contextmanager
def without_limit_range(platform: OwnPlatform) -> Iterator[None]:
    """Let a container of the platform's namespace be of any size meanwhile."""
    namespace = platform.namespace
    limits = json.loads(namespace.kubectl("get", "limitrange", "labs", "--output=jsonpath={.spec}"))
    without = [{key: value for key, value in one.items() if key != "max"} for one in limits["limits"]]
    _limit(platform, {"limits": without})
    try:
        yield
    finally:
        _limit(platform, limits)


def _limit(platform: OwnPlatform, spec: Manifest) -> None:
    patch = f"--patch={json.dumps({'spec': spec})}"
    platform.namespace.kubectl("patch", "limitrange", "labs", "--type=merge", patch)


@dataclass
class ResizedLab:
    """One RUNNING lab."""

    platform: OwnPlatform
    lab: int

    @classmethod
    def start(cls, platform: OwnPlatform, **payload: Any) -> ResizedLab:
        """Start one by a container of its own."""
        found = cls(platform, platform.database.add_lab(lab_id=payload.get("lab_id", 7)))
        kwargs = create_kwargs(lab_instance_id=found.lab, docker_image=os.environ["LAB_IMAGE"], **payload)
        platform.broker.publish_task(name=CREATE_LAB_POD, kwargs=kwargs)
        # The node may be full of others' work for a while.
        environ: dict[str, Any] = {
            "CELERY_TASK_RETRY_DELAY": 1,
            "CELERY_TASK_RETRY_BACKOFF": 1,
            "CELERY_TASK_MAX_RETRIES": 9,
        }
        for _ in range(10):
            platform.containers.run(queue=topology.QUEUE_NORMAL, **environ)
            if found.status == "RUNNING":
                return found
        raise AssertionError(f"lab {found.lab} is {found.status}")

    @property
    def status(self) -> str:
        return str(self.platform.database.lab(self.lab)["status"])

    @property
    def pod_name(self) -> str:
        return lab_object_name(self.lab, os.environ["LAB_IMAGE"])

    @property
    def pod(self) -> Manifest:
        path = f"{self.platform.namespace.collections['Pod']}/{self.pod_name}"
        found = self.platform.namespace.cluster.get(path)
        if found is None:
            raise AssertionError(f"no {self.pod_name}")
        return found

    @property
    def node_cpu(self) -> int:
        """Millicores that the Pods of the lab's node share; some are taken, if only by the platform."""
        node = self.platform.namespace.cluster.get(f"/api/v1/nodes/{self.pod['spec']['nodeName']}")
        if node is None:
            raise AssertionError(f"{self.pod_name} has no node")
        return int(parse_quantity(node["status"]["allocatable"]["cpu"]) * 1000)

    def let_grow(self, *, cpu_request_ratio: float, **changes: Any) -> None:
        """Let a request for a larger lab come as far as its node."""
        most = {"cpu": f"{2 * self.node_cpu}m", "memory": "4Gi", "storage": "10Gi"}
        self.platform.set_lab_settings(max_resources=most, cpu_request_ratio=cpu_request_ratio, **changes)

    @property
    def note(self) -> str | None:
        annotation: str | None = self.pod["metadata"]["annotations"].get(NOTE)
        return annotation

    @property
    def spec(self) -> dict[str, Any]:
        """Limits and requests that the Pod asks for."""
        resources: dict[str, Any] = self.pod["spec"]["containers"][0]["resources"]
        return resources

    @property
    def restarts(self) -> int:
        return int(self.pod["status"]["containerStatuses"][0]["restartCount"])

    @property
    def pending(self) -> list[str]:
        """Conditions of a resize that is not settled."""
        conditions = self.pod["status"]["conditions"]
        return [f"{c['type']} {c.get('reason')}" for c in conditions if "Resize" in c["type"]]

    def cgroup(self) -> tuple[float, int]:
        """Return cores and bytes that the container may use, read inside of it."""
        quota, period, memory = self.shell(_READ_CGROUP).split()
        return int(quota) / int(period), int(memory)

    def program_start(self) -> str:
        """Return when the container's first process began."""
        return self.shell(_READ_START).strip()

    def shell(self, script: str) -> str:
        return self.platform.namespace.kubectl("exec", self.pod_name, "--", "sh", "-c", script)

    def use_memory(self, size: int) -> subprocess.Popen[bytes]:
        """Have a program in the lab hold so many bytes, until the returned process is ended."""
        # tail keeps the only line, which nobody takes from it.
        script = f"head -c {size} /dev/zero | tail -n 1 | (echo full; exec sleep 300)"
        words = ("--namespace", self.platform.namespace.name, "exec", self.pod_name, "--", "sh", "-c", script)
        process = subprocess.Popen(["kubectl", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        usage = "cat /sys/fs/cgroup/memory.current /sys/fs/cgroup/memory/memory.usage_in_bytes 2>/dev/null; :"
        eventually(lambda: int(self.shell(usage).split()[0]) > size, 60, what=f"{size} bytes in use")
        return process

    def publish(self, *, cpu: str | None = None, memory: str | None = None, **changes: Any) -> str:
        """Ask for other resources; return the task's id."""
        asked = {name: value for name, value in (("cpu", cpu), ("memory", memory)) if value}
        kwargs = {"lab_instance_id": self.lab, "new_resources": asked}
        return self.platform.broker.publish_task(name=SCALE_LAB_RESOURCES, kwargs=kwargs, **changes)

    def serve(self, *, module: str = "jobs", **environ: Any) -> Process:
        """Let one container take the next message, and settle it."""
        process = self.platform.containers.start(queue=topology.QUEUE_HIGH, module=module, **environ)
        code = process.wait(90)
        if code != 0 or "idle" in process.actions():
            raise AssertionError(f"container left with {code}: {process.log.read_text()[-4000:]}")
        return process

    def resize(self, *, cpu: str | None = None, memory: str | None = None, **environ: Any) -> dict[str, Any]:
        """Ask for other resources, have that done, and return the newest ledger row."""
        task_id = self.publish(cpu=cpu, memory=memory)
        self.serve(**environ)
        return self.runs(task_id)[-1]

    def runs(self, task_id: str) -> list[dict[str, Any]]:
        statement = "SELECT * FROM task_ledger WHERE task_id = %s ORDER BY id"
        return self.platform.database.rows(statement, task_id)

    def replace_pod(self, **spec: Any) -> None:
        """Put another Pod in the place of the lab's, as it was created but for these fields of its spec."""
        pod = self.pod
        kept = {key: pod["metadata"][key] for key in ("name", "namespace", "labels", "annotations")}
        fresh = {key: value for key, value in pod["spec"].items() if key != "nodeName"}
        self.platform.namespace.kubectl("delete", "pod", self.pod_name, "--now")
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": kept, "spec": fresh | spec}
        self.platform.namespace.kubectl("create", "--filename=-", stdin=manifest)

    def stop(self) -> None:
        kwargs = {"lab_instance_id": self.lab, "force": True}
        self.platform.broker.publish_task(name="celery_workers.delete_lab_pod", kwargs=kwargs)
        self.serve()

    def settled(self) -> dict[str, Any]:
        """Return what a lab has, and whether its cgroup says the same as its spec."""
        cores, memory = self.cgroup()
        limits = self.spec["limits"]
        agree = cores == float(parse_quantity(limits["cpu"])) and memory == int(
            parse_quantity(limits["memory"])
        )
        return {
            "status": self.status,
            "limits": {name: limits[name] for name in ("cpu", "memory")},
            "requests": {name: self.spec["requests"][name] for name in ("cpu", "memory")},
            "cgroup agrees": agree,
            "pending": self.pending,
            "note": self.note,
            "restarts": self.restarts,
        }
