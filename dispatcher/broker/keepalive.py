"""A thread that keeps an idle connection alive, as in a web worker that publishes once an hour."""

from __future__ import annotations

import threading
import weakref
from typing import Protocol


class Idle(Protocol):
    """Something with a connection to look after now and then."""

    def keep_alive(self) -> None:
        """Answer heartbeats; returns at once if the connection is in use."""


class KeepAlive:
    """Call `owner.keep_alive()` every `interval_s` seconds until stopped or the owner is gone."""

    def __init__(self, owner: Idle, *, interval_s: float) -> None:
        # A strong reference would keep a forgotten publisher, and its connection, for ever.
        self._owner = weakref.ref(owner)
        self._interval_s = interval_s
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="autolabs-keepalive", daemon=True).start()

    def stop(self) -> None:
        """End the thread before its next round."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            owner = self._owner()
            if owner is None:
                return
            owner.keep_alive()
            del owner
