"""Hold a container that cannot work for a while before it ends; `python -m jobs` calls it.

KEDA replaces a spare that ends at once, also with an empty queue. A container that holds is not Ready, counts
as pending, and has no message and no consumer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from dispatcher.settings import SECRETS_DIR, Environment

#: Seconds between looks at what may have been mended; a stop ends the wait at once.
LOOK_S = 5.0


def hold_s(env: Environment) -> float:
    """Return for how long to hold: all spares of a queue end no more than one container per minute."""
    # Not from JobSettings: they may be what is wrong. A wrong value here is told by them, if it matters.
    spares = env.count("SPARES", 0, minimum=0, maximum=10_000)
    return env.number("FAULT_WAIT_S", 60, minimum=0, maximum=600) * min(max(1, spares), 10)


def secret_version(secrets_dir: Path = SECRETS_DIR) -> str:
    """Return what differs once the kubelet has written another content of the Secret, or nothing."""
    try:
        return str((secrets_dir / "..data").readlink())
    except OSError:
        return ""


def hold(
    stop: threading.Event,
    wait_s: float,
    mended: Callable[[], bool] | None = None,
    *,
    secrets_dir: Path = SECRETS_DIR,
    look_s: float = LOOK_S,
) -> None:
    """Wait until a stop, another content of the Secret, `mended`, or the end of `wait_s` seconds."""
    version = secret_version(secrets_dir)
    deadline = time.monotonic() + wait_s
    while (left_s := deadline - time.monotonic()) > 0:
        if stop.wait(min(look_s, left_s)) or secret_version(secrets_dir) != version:
            return
        if mended is not None and mended():
            return
