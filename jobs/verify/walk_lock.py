"""One walk through the queues at a time: two would meet each other's copies, and miss some messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from dispatcher.interrupts import Stop
from jobs.database.connection import session_lock
from jobs.database.lab_store import LabStore

#: Seconds to wait for another walk, which takes a few for thousands of messages.
PATIENCE_S = 120.0
_POLL_S = 0.5


class Busy(Exception):
    """Raised when another walk takes too long."""


@contextmanager
def walk_lock(
    labs: LabStore, stop: Stop, progress: Callable[[str], None] = lambda _where: None
) -> Iterator[None]:
    """Wait until nobody else walks, and keep others waiting. Raises Busy, Interrupted, JobError."""
    deadline = monotonic() + PATIENCE_S

    def pause() -> None:
        if monotonic() >= deadline:
            raise Busy(f"somebody else has looked at them for {PATIENCE_S:g} s")
        progress("another verify looks at the queues, waiting")
        stop.pause(_POLL_S)

    with session_lock(labs, "autolabs.verify", pause=pause):
        yield
