"""One walk through the queues at a time: two would meet each other's copies, and miss some messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from dispatcher.interrupts import Stop
from jobs.database import Cursor
from jobs.labs import LabStore

#: Seconds to wait for another walk, which takes a few for thousands of messages.
PATIENCE_S = 120.0
_POLL_S = 0.5
# Of the session: a process that dies gives it back.
_TAKE = "SELECT pg_try_advisory_lock(hashtextextended('autolabs.verify', 0))"
_LEAVE = "SELECT pg_advisory_unlock(hashtextextended('autolabs.verify', 0))"


class Busy(Exception):
    """Raised when another walk takes too long."""


@contextmanager
def turn(labs: LabStore, stop: Stop, progress: Callable[[str], None] = lambda _where: None) -> Iterator[None]:
    """Wait until nobody else walks, and keep others waiting. Raises Busy, Interrupted, JobError."""
    deadline = monotonic() + PATIENCE_S
    while not labs.transaction(lambda cursor: _ask(cursor, _TAKE)):
        if monotonic() >= deadline:
            raise Busy(f"somebody else has looked at them for {PATIENCE_S:g} s")
        progress("another verify looks at the queues, waiting")
        stop.pause(_POLL_S)
    try:
        yield
    finally:
        labs.transaction(lambda cursor: _ask(cursor, _LEAVE))


def _ask(cursor: Cursor, statement: str) -> bool:
    cursor.execute(statement)
    return bool(cursor.fetchall()[0][0])
