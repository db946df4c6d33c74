"""Run a function in every forked child before anything else runs there; publisher, engine and client do."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from types import MethodType


def call_in_forked_children(function: Callable[[], None]) -> None:
    """Call a function in every child that is forked from now on, a bound method while its object exists.

    The child has one thread then, and locks that other threads of the parent held are held for ever. A
    function must keep nothing alive.
    """
    if not hasattr(os, "register_at_fork"):  # Windows has no forks
        return
    known = weakref.WeakMethod(function) if isinstance(function, MethodType) else lambda: function

    def call() -> None:
        if (found := known()) is not None:
            found()

    os.register_at_fork(after_in_child=call)
