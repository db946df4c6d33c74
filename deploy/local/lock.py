"""One `up` or `down` at a time on this machine."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local.errors import LocalClusterError
from deploy.local.steps import note

#: Outside the state folder, which `down` clears while it holds the lock.
LOCK = Path("/run/lock/autolabs-local.lock")


@contextmanager
def exclusive(path: Path = LOCK, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock; the kernel releases it when the holder dies, however that happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            if not wait:
                raise LocalClusterError(f"another up or down is running (pid {holder})") from None
            note(f"another up or down is running (pid {holder}); waiting for it to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
