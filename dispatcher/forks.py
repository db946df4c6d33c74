"""What a forked child must do before anything else runs in it."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from types import MethodType


def call_in_forked_children(method: Callable[[], None]) -> None:
    """Call a bound method in every child that is forked while its object exists.

    The child has one thread then, and locks that other threads of the parent held are held for ever.
    """
    if not isinstance(method, MethodType):
        raise TypeError("only a method of an object can be forgotten with it")
    known = weakref.WeakMethod(method)

    def call() -> None:
        if (found := known()) is not None:
            found()

    run_in_forked_children(call)


def run_in_forked_children(function: Callable[[], None]) -> None:
    """Call a function in every child that is forked from now on; it must keep nothing alive."""
    if hasattr(os, "register_at_fork"):  # Windows has no forks
        os.register_at_fork(after_in_child=function)
