"""Bounded waiting; a test never sleeps for a fixed time and hopes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(check: Callable[[], T | None], timeout_s: float = 10, *, what: str = "") -> T:
    """Return the first truthy result of `check`; fails with the last result after the timeout."""
    deadline = time.monotonic() + timeout_s
    while True:
        seen = check()
        if seen:
            return seen
        if time.monotonic() >= deadline:
            name = what or getattr(check, "__name__", "condition")
            raise AssertionError(f"not within {timeout_s:g} s: {name}; last seen: {seen!r}")
        time.sleep(0.05)


def eventually_equal(read: Callable[[], T], expected: T, timeout_s: float = 10) -> None:
    """Wait until `read` returns `expected`; fails with what it returned last."""
    deadline = time.monotonic() + timeout_s
    while (seen := read()) != expected:
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {expected!r}; last seen: {seen!r}")
        time.sleep(0.05)
