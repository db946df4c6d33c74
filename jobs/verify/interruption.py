"""Ctrl-C and SIGTERM: asked once it ends where nothing is in our hands, asked twice at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from types import FrameType

#: Seconds for which a queue may still go round: half way, what was seen is behind what was not.
TURN_S = 5.0
_STEP_S = 0.2


class Interrupted(Exception):
    """Raised where the work ends because somebody asked for it."""


class Interruption:
    """Whether somebody asked for the end; nobody does before `listen`."""

    def __init__(self) -> None:
        self._asked_at: float | None = None

    def check(self) -> None:
        """Raise Interrupted if it was asked for."""
        if self._asked_at is not None:
            raise Interrupted

    def check_on_the_way(self) -> None:
        """Raise Interrupted if it was asked for so long ago that a queue cannot go round first."""
        if self._asked_at is not None and monotonic() >= self._asked_at + TURN_S:
            raise Interrupted

    def pause(self, seconds: float) -> None:
        """Sleep. Raises Interrupted."""
        deadline = monotonic() + seconds
        while (left_s := deadline - monotonic()) > 0:
            self.check()
            sleep(min(_STEP_S, left_s))
        self.check()

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM meanwhile; in the main thread only."""
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked_at is not None:
            raise Interrupted
        self._asked_at = monotonic()
