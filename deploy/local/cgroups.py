"""Our own cgroup: what lives below it was started by us, whatever became of its parents.

Membership is the proof used before any process is ended: it is inherited by children, cannot be
mistyped like a name, and survives the death of the command that started them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from deploy.local.errors import LocalClusterError
from deploy.local.settings import CGROUP

ROOT = Path("/sys/fs/cgroup")
HOST = "host"  # our daemons; the kubelet makes kubepods beside it
BUILD = "build"  # the running command and what it starts only for a while


def hierarchies(root: Path = ROOT) -> list[Path]:
    """Return the roots of all cgroup hierarchies: one for v2, one per controller for v1."""
    if (root / "cgroup.controllers").exists():
        return [root]
    return [path for path in sorted(root.iterdir()) if (path / "cgroup.procs").exists()]


def is_v2(root: Path = ROOT) -> bool:
    """Whether the machine has the one unified hierarchy."""
    return (root / "cgroup.controllers").exists()


def enter() -> None:
    """Move this process, and with it all it will start, below our cgroup, to the part `build`."""
    for hierarchy in hierarchies():
        ours = hierarchy / CGROUP
        ours.mkdir(exist_ok=True)
        if hierarchy.name == "cpuset":  # v1: empty values refuse processes
            for name in ("cpuset.cpus", "cpuset.mems"):
                (ours / name).write_text((hierarchy / name).read_text())
    if is_v2():
        _delegate(ROOT / CGROUP)
    if (shares := ROOT / "cpu" / CGROUP / "cpu.shares").exists():
        # All pods are below it: with the default they would weigh as much as one process outside.
        shares.write_text(str(1024 * (os.cpu_count() or 1)))
    for hierarchy in _left_by_daemons():
        (hierarchy / CGROUP / HOST).mkdir(exist_ok=True)
    (_tracking_hierarchy() / CGROUP / BUILD).mkdir(exist_ok=True)
    _join(_tracking_hierarchy() / CGROUP / BUILD)


def join_host() -> None:
    """Move this process to the daemons; runs in the child before it becomes one."""
    for hierarchy in _left_by_daemons():
        _join(hierarchy / CGROUP / HOST)


def _join(folder: Path) -> None:
    (folder / "cgroup.procs").write_text(str(os.getpid()))


def _left_by_daemons() -> list[Path]:
    """The hierarchies in which a login session could end its members or limit their memory."""
    if is_v2():
        return [ROOT]
    return [h for name in ("pids", "memory", "systemd") if (h := ROOT / name) in hierarchies()]


def leave() -> None:
    """Move this process back if it is in, so that its cgroup can be removed."""
    if os.getpid() in members():
        (_tracking_hierarchy() / "cgroup.procs").write_text(str(os.getpid()))


def members(part: str = "") -> set[int]:
    """Return the pids of all processes below our cgroup, or below one part of it."""
    pids: set[int] = set()
    for hierarchy in hierarchies():
        for folder in _folders(hierarchy / CGROUP / part):
            with contextlib.suppress(OSError):  # the folder may go away while we look
                pids.update(int(pid) for pid in (folder / "cgroup.procs").read_text().split())
    return pids


def exists() -> bool:
    """Whether a cgroup of ours is there, empty or not."""
    return any((hierarchy / CGROUP).exists() for hierarchy in hierarchies())


def remove() -> None:
    """Remove our cgroups, the deepest first; they must be empty."""
    for hierarchy in hierarchies():
        for folder in _folders(hierarchy / CGROUP):
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise LocalClusterError(f"cannot remove cgroup {folder}: {exc}") from exc


def _tracking_hierarchy() -> Path:
    """The hierarchy that says whose a process is; v1 has many, pids exists wherever pods run."""
    return ROOT if is_v2() else ROOT / "pids"


def _delegate(folder: Path) -> None:
    for parent in (ROOT, folder):
        names = (parent / "cgroup.controllers").read_text().split()
        for name in names:
            with contextlib.suppress(OSError):  # a controller that cannot be delegated
                (parent / "cgroup.subtree_control").write_text(f"+{name}")


def _folders(top: Path) -> Iterator[Path]:
    """Yield the folder tree, children before parents."""
    if top.is_dir():
        for folder, _, _ in os.walk(top, topdown=False):
            yield Path(folder)
