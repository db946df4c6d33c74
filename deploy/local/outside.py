"""What programs of ours leave in places that no setting moves: found by our ids, then removed.

Folders go only if they were not there before and nothing of somebody else is in them.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from deploy.local import journal
from deploy.local.paths import Layout

FOLDERS = (
    "/etc/cni/net.d",
    "/run/containerd/runc/k8s.io",
    "/run/containerd/s",
    "/usr/libexec/kubernetes/kubelet-plugins/volume/exec",
    "/var/lib/cni/results",
    "/var/lib/kubelet/device-plugins",
    "/var/log/containers",
)
#: Left in folders that we made.
FILES = ("/etc/cni/net.d/cni.lock", "/var/lib/kubelet/device-plugins/kubelet.sock")
SECTION = "folder"


def remember(layout: Layout, folders: tuple[str, ...] = FOLDERS) -> None:
    """Write down which of the folders, and of those above them, are not there yet."""
    for folder in map(Path, folders):
        for path in (folder, *folder.parents):
            if not path.exists():
                journal.remember(layout, SECTION, str(path), "absent")


def of_containers(layout: Layout, runtime: Path = Path("/run/containerd")) -> list[Path]:
    """Return shim sockets and runc's notes of our containers; the bundles name them."""
    found = []
    bundles = layout.run / "containerd" / "io.containerd.runtime.v2.task" / "k8s.io"
    for bundle in bundles.glob("*"):
        found.append(runtime / "runc" / "k8s.io" / bundle.name)
        with contextlib.suppress(OSError):
            socket = Path((bundle / "address").read_text().strip().removeprefix("unix://"))
            if socket.is_relative_to(runtime / "s"):
                found.append(socket)
    return found


def remove(layout: Layout, containers: list[Path]) -> None:
    """Remove these and the other files of ours, then the folders that are empty by that."""
    for path in containers:
        _remove(path)
    _remove_cni_results(layout)
    _remove_log_links(layout)
    ours = journal.entries(layout, SECTION)
    for name in FILES:
        if str(Path(name).parent) in ours:
            _remove(Path(name))
    for name in sorted(ours, key=len, reverse=True):
        with contextlib.suppress(OSError):  # not empty: somebody else uses it by now
            Path(name).rmdir()


def _remove_cni_results(layout: Layout, folder: Path = Path("/var/lib/cni/results")) -> None:
    """The CNI library keeps everybody's results in one place; ours name our namespaces."""
    for path in folder.glob("*"):
        with contextlib.suppress(OSError):
            if f'"{layout.run}/' in path.read_text():
                path.unlink()


def _remove_log_links(layout: Layout, folder: Path = Path("/var/log/containers")) -> None:
    for path in folder.glob("*.log"):
        with contextlib.suppress(OSError):
            if path.readlink().is_relative_to(layout.logs):
                path.unlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
