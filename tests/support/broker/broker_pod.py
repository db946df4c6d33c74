"""A RabbitMQ of a test's own in the cluster, to be killed and starved while others use theirs.

It is the platform's broker once more, from the same image and definitions, on a volume that survives
its container but not its Pod.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from tests.support.waiting import eventually

NAMESPACE = "messaging"
#: Seconds after which a Pod never starts, on however slow a machine.
_HANGS_S = 180


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    command = ["kubectl", "--namespace", NAMESPACE, *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


class BrokerPod:
    """One Pod; `amqp_url` and `api_url` lead to it with the platform's credentials."""

    def __init__(self, name: str, amqp_url: str, api_url: str) -> None:
        self._name = name
        kubectl("apply", "--filename", "-", stdin=json.dumps(self._manifest()))
        eventually(self._is_ready, _HANGS_S, what=f"Pod {name} is Ready")
        address = self._pod()["status"]["podIP"]
        self.amqp_url = _at(amqp_url, address, 5672)
        self.api_url = _at(api_url, address, 15672)

    def kill(self) -> None:
        """End the server with SIGKILL; its container is started again on the same data."""
        restarts = self._restarts()
        # Erlang is a child of the container's first process, which no signal from within can kill.
        self._exec("sh", "-c", "kill -9 $(cat /proc/[0-9]*/stat | awk '$2 == \"(beam.smp)\" {print $1}')")
        eventually(lambda: self._restarts() > restarts, _HANGS_S, what=f"{self._name} was restarted")

    def wait_ready(self) -> None:
        eventually(self._is_ready, _HANGS_S, what=f"Pod {self._name} is Ready")

    def limit_memory(self, limit: str) -> None:
        """Set the limit, such as 1MB or 600MB, above which the broker takes no messages."""
        self._exec("rabbitmqctl", "set_vm_memory_high_watermark", "absolute", limit)

    def remove(self) -> None:
        kubectl("delete", "pod", self._name, "--wait=false", "--grace-period=1")

    def evidence(self) -> str:
        return kubectl("logs", self._name, "--tail=30")

    def _exec(self, *command: str) -> str:
        return kubectl("exec", self._name, "--", *command)

    def _manifest(self) -> dict[str, Any]:
        deployment = json.loads(kubectl("get", "deployment", "rabbitmq", "--output=json"))
        spec = deployment["spec"]["template"]["spec"]
        volumes = [
            {"name": volume["name"], "emptyDir": {}} if "persistentVolumeClaim" in volume else volume
            for volume in spec["volumes"]
        ]
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self._name, "labels": {"app.kubernetes.io/component": "test"}},
            "spec": {**spec, "volumes": volumes, "restartPolicy": "Always"},
        }

    def _pod(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(kubectl("get", "pod", self._name, "--output=json"))
        return found

    def _is_ready(self) -> bool:
        conditions = self._pod()["status"].get("conditions", [])
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    def _restarts(self) -> int:
        return sum(one["restartCount"] for one in self._pod()["status"].get("containerStatuses", []))


def _at(url: str, address: str, port: int) -> str:
    parts = urlsplit(url)
    credentials, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{credentials}{at}{address}:{port}"))
