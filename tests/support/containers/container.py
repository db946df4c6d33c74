"""The container's entry point: `python -m jobs`, as a process of its own or called in this one."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dispatcher.broker.topology import QUEUE_NORMAL
from tests.support.containers import container_here
from tests.support.containers.forked import ForkedModule
from tests.support.waiting import HANG_S, eventually

ROOT = Path(__file__).parents[3]


#: What changes the standard library before anything else is imported.
_FIRST_IMPORTS = ("tests.support.containers.skewed_job",)
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
class Run:
    """One container's run; its log goes to a file that the report shows."""

    log: Path

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


@dataclass
class Process(Run):
    """A container as a process of its own."""

    popen: subprocess.Popen[bytes] | ForkedModule
    ready_port: int

    def wait_for_action(self, action: str, timeout_s: float = HANG_S) -> None:
        eventually(lambda: action in self.actions(), timeout_s, what=f"{action} in {self.log.name}")

    def is_ready(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.ready_port)) == 0

    def terminate(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = 2 * HANG_S) -> int:
        return self.popen.wait(timeout_s)

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(HANG_S)


@dataclass
class Containers:
    """Start containers for a test's vhost, database and bucket."""

    environ: dict[str, str]
    folder: Path
    #: Messages that are no tasks after which one that runs here ends, rather than wait for another.
    put_aside: int = 1
    #: Processes are forks of one that has imported everything: a third of what tests/cluster computes would
    #: be imports.
    forks: bool = False
    #: Those that are processes.
    started: list[Process] = field(default_factory=list)
    _logs: list[Path] = field(default_factory=list)

    def start(self, *, queue: str = QUEUE_NORMAL, module: str = "jobs", **environ: Any) -> Process:
        port = free_port()
        log = self._new_log()
        start = self._fork if self.forks and module not in _FIRST_IMPORTS else self._execute
        process = Process(log, start(module.split(), self._environ(queue, port, environ), log), port)
        self.started.append(process)
        return process

    def _fork(self, words: list[str], environ: Mapping[str, str], log: Path) -> ForkedModule:
        log.touch()
        return ForkedModule(*words, environ=environ, log=log, folder=ROOT)

    def _execute(self, words: list[str], environ: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", *words], cwd=ROOT, env=environ, stdout=file, stderr=subprocess.STDOUT
            )

    def run(self, *, queue: str = QUEUE_NORMAL, module: str = "jobs", **environ: Any) -> tuple[int, Process]:
        """Start a container, wait for its end, return the exit code too."""
        process = self.start(queue=queue, module=module, **environ)
        return process.wait(), process

    def run_here(self, *, queue: str = QUEUE_NORMAL, **environ: Any) -> tuple[int, Run]:
        """Do the same in this process, where the process is not what a test is about."""
        run = Run(self._new_log())
        ours = self._environ(queue, free_port(), {"CLAIM_WAIT_S": HANG_S, **environ})
        return container_here.serve(ours, run.log, put_aside=self.put_aside), run

    def _new_log(self) -> Path:
        self._logs.append(self.folder / f"container-{len(self._logs)}.log")
        return self._logs[-1]

    def _environ(self, queue: str, port: int, changes: Mapping[str, Any]) -> dict[str, str]:
        ours = {
            "AUTOLABS_QUEUE": queue,
            "READY_PORT": port,
            "CLAIM_WAIT_S": 5,
            "FAULT_WAIT_S": 0,
            "POD_NAME": f"pod-{port}",
            **changes,
        }
        return self.environ | {name: str(value) for name, value in ours.items()}

    def end(self) -> None:
        for process in self.started:
            process.end()

    def evidence(self) -> str:
        return "\n".join(f"== {log.name}\n{log.read_text()[-8000:]}" for log in self._logs)
