"""Long-lived processes: started in a session of their own, found again by pid and start time."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local import cgroups
from deploy.local.paths import Layout
from deploy.local.shell import wait_until


@dataclass(frozen=True, slots=True)
class Daemon:
    """A process to be kept running, under a name that is unique here."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)


def start(layout: Layout, daemon: Daemon) -> None:
    """Start it unless it runs; it outlives the shell, needs no stdin and logs to a file."""
    if is_alive(layout, daemon.name):
        return
    wait_until(f"the killed {daemon.name} is gone", lambda: _ending(layout, daemon.name), timeout_s=30)
    with log_path(layout, daemon.name).open("ab") as log:
        process = subprocess.Popen(
            list(daemon.argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
            | {name: os.environ[name] for name in ("LANG", "TZ") if name in os.environ}
            | daemon.env,
            cwd="/",
            start_new_session=True,
            preexec_fn=cgroups.join_host,
        )
    record = {"pid": process.pid, "start": start_time(process.pid), "argv": list(daemon.argv)}
    temporary = _record(layout, daemon.name).with_suffix(".tmp")
    temporary.write_text(json.dumps(record))
    temporary.replace(_record(layout, daemon.name))


def log_path(layout: Layout, name: str) -> Path:
    """Return the file that gets both output streams."""
    return layout.logs / f"{name}.log"


def pid_of(layout: Layout, name: str) -> int | None:
    """Return the pid of a running daemon of ours, or None; a reused pid is not taken for it."""
    pid, started = _recorded(layout, name)
    if started is None:
        return None
    _reap(pid)
    return pid if start_time(pid) == started else None


def is_alive(layout: Layout, name: str) -> bool:
    """Whether the process that we started runs."""
    return pid_of(layout, name) is not None


def _recorded(layout: Layout, name: str) -> tuple[int, int | None]:
    try:
        record = json.loads(_record(layout, name).read_text())
        return int(record["pid"]), record["start"]
    except (OSError, ValueError, KeyError):
        return 0, None


def _ending(layout: Layout, name: str) -> str | None:
    """Return what holds the ports of a daemon that was killed: its first thread ends before the others."""
    pid, started = _recorded(layout, name)
    _, start, threads = _stat(pid)
    return f"{threads - 1} of its threads are left" if start == started and threads > 1 else None


def start_time(pid: int) -> int | None:
    """Return the process's start in clock ticks since boot; None when it is gone or a zombie."""
    state, start, _ = _stat(pid)
    return None if state in ("Z", "X") else start


def _stat(pid: int) -> tuple[str, int | None, int]:
    """Return state, start and count of threads of a process (proc_pid_stat(5)); no start when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X", None, 0
    return fields[0], int(fields[19]), int(fields[17])


def end(pids: Iterable[int], *, grace_s: float) -> None:
    """End processes of our cgroup: SIGTERM, then SIGKILL to those left after the grace period.

    The pidfd is opened before the membership is checked, so a reused pid can never be hit.
    """
    opened: list[int] = []
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                opened.append(os.pidfd_open(pid))
                if pid not in cgroups.members():
                    os.close(opened.pop())
        for signal_number, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
            if signal_number is signal.SIGTERM and grace_s <= 0:
                continue
            for descriptor in opened:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, signal_number)
            opened = _still_running(opened, patience)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _still_running(descriptors: list[int], patience_s: float) -> list[int]:
    poller = select.poll()
    waiting = set(descriptors)
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + patience_s
    while waiting and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poller.poll(left * 1000):
            poller.unregister(descriptor)
            waiting.discard(descriptor)
            os.close(descriptor)
    return sorted(waiting)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _record(layout: Layout, name: str) -> Path:
    return layout.pids / f"{name}.json"
