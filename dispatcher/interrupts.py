"""Note Ctrl-C and SIGTERM, to be looked at between two messages; asked twice, a command ends at once.

An exception in the middle of a call of pika leaves its connection in pieces: closing it may fail or hang, and
what it holds goes back in another order.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from types import FrameType

from dispatcher.errors import DispatcherError

#: Seconds after a signal in which work that is half done may be finished.
PATIENCE_S = 5.0
_STEP_S = 0.2
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(DispatcherError):
    """Raised between two messages, once a signal asked to stop; `exit_code` is that of a shell."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class Stop:
    """Whether somebody asked to stop; nobody does but within `stop_on_signals`."""

    def __init__(self) -> None:
        #: Number of the signal that came.
        self.number: int | None = None
        self._asked_at = 0.0

    def ask(self, number: int) -> None:
        self.number, self._asked_at = number, monotonic()

    def check(self, message: str = "interrupted") -> None:
        """Raise Interrupted with a sentence if somebody did."""
        if self.number is not None:
            raise Interrupted(self.number, message)

    def check_on_the_way(self) -> None:
        """Raise Interrupted if somebody did so long ago that what is half done stays so."""
        if self.number is not None and monotonic() >= self._asked_at + PATIENCE_S:
            self.check()

    def pause(self, seconds: float) -> None:
        deadline = monotonic() + seconds
        while (left_s := deadline - monotonic()) > 0:
            self.check()
            sleep(min(_STEP_S, left_s))
        self.check()


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Note the first signal, for the block to look at; a second one raises KeyboardInterrupt at once.

    Signals are the main thread's: in another one nothing is noted.
    """
    stop = Stop()

    def note(number: int, _frame: FrameType | None) -> None:
        if stop.number is not None:
            raise KeyboardInterrupt
        stop.ask(number)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_a_hurry() -> bool:
    """Tell, in a `finally`, whether the block was left in the middle of something by KeyboardInterrupt."""
    return isinstance(sys.exc_info()[1], KeyboardInterrupt)
