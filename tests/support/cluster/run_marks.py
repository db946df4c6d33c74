"""Who made an object in the cluster: this process, one that still runs, or one that was killed.

Cluster-wide objects outlive a killed test run. Each carries the mark of the process that is to remove it, and
whoever comes next removes what belongs to nobody.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

from deploy.local.daemons import start_time
from jobs.cluster.client import Manifest

#: Annotation.
MARK = "autolabs.io/made-by"
#: Age from which an object of another machine is nobody's: no run takes so long.
FOREIGN_FOR = timedelta(hours=6)


def own_mark() -> str:
    """Return what names this process, and no other that ever was or will be."""
    return _mark(os.getpid())


def is_left_over(manifest: Manifest) -> bool:
    """Tell whether the process that made an object is gone."""
    metadata = manifest["metadata"]
    mark = str((metadata.get("annotations") or {}).get(MARK, ""))
    here, _, process = mark.rpartition("/")
    if here == _here():
        return mark != _mark(int(process.partition(".")[0]))
    created_at = datetime.fromisoformat(str(metadata["creationTimestamp"]))
    return datetime.now(timezone.utc) - created_at > FOREIGN_FOR


def _here() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    # A container sees other processes than its machine.
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"


def _mark(pid: int) -> str:
    return f"{_here()}/{pid}.{start_time(pid)}"
