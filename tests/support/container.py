"""The container's entry point as a real process: `python -m jobs`, with an environment of its own."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dispatcher.topology import QUEUE_NORMAL
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]


#: Below those that the system gives to outgoing connections, one of which could have it before its user.
_PORTS = range(12_000, 30_000)


def free_port() -> int:
    """Return a port that nobody has, nor will soon: by chance, since several test processes choose."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


@dataclass
class Process:
    """One container run; its log goes to a file that the report shows."""

    log: Path
    popen: subprocess.Popen[bytes]
    ready_port: int

    def lines(self) -> list[dict[str, Any]]:
        found = []
        for line in self.log.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                found.append({"action": "not JSON", "message": line})
        return found

    def actions(self) -> list[str]:
        return [line["action"] for line in self.lines() if "action" in line]

    def wait_for_action(self, action: str, timeout_s: float = 20) -> None:
        eventually(lambda: action in self.actions(), timeout_s, what=f"{action} in {self.log.name}")

    def is_ready(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.ready_port)) == 0

    def terminate(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = 30) -> int:
        return self.popen.wait(timeout_s)

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(10)


@dataclass
class Containers:
    """Start containers for a test's vhost, database and bucket."""

    environ: dict[str, str]
    folder: Path
    started: list[Process] = field(default_factory=list)

    def start(self, *, queue: str = QUEUE_NORMAL, module: str = "jobs", **environ: Any) -> Process:
        port = free_port()
        log = self.folder / f"container-{len(self.started)}.log"
        ours = {
            "AUTOLABS_QUEUE": queue,
            "READY_PORT": port,
            "CLAIM_WAIT_S": 5,
            "POD_NAME": f"pod-{port}",
            **environ,
        }
        with log.open("wb") as file:
            popen = subprocess.Popen(
                [sys.executable, *("-m", *module.split())],
                cwd=ROOT,
                env=self.environ | {name: str(value) for name, value in ours.items()},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        process = Process(log, popen, port)
        self.started.append(process)
        return process

    def run(self, *, queue: str = QUEUE_NORMAL, module: str = "jobs", **environ: Any) -> tuple[int, Process]:
        """Start a container, wait for its end, return the exit code too."""
        process = self.start(queue=queue, module=module, **environ)
        return process.wait(), process

    def end(self) -> None:
        for process in self.started:
            process.end()

    def evidence(self) -> str:
        return "\n".join(
            f"== {process.log.name}\n{process.log.read_text()[-8000:]}" for process in self.started
        )
