"""Bounded waiting; a test never sleeps for a fixed time and hopes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

#: Seconds after which whatever is waited for is taken to hang; what works stays far below, on any machine.
HANG_S = 30.0

#: Seconds for what ends at once, or after a second, and without its own limit would take minutes.
SOON_S = 10.0


@contextmanager
def ends_within(limit_s: float = SOON_S) -> Iterator[None]:
    """Fail a block that took longer; the limit is far from what it takes and from what it must not."""
    began = time.monotonic()
    yield
    took_s = time.monotonic() - began
    if took_s >= limit_s:
        raise AssertionError(f"it took {took_s:.1f} s, and {limit_s:g} s are more than enough")


def eventually(check: Callable[[], T | None], timeout_s: float = HANG_S, *, what: str = "") -> T:
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


def eventually_equal(read: Callable[[], T], expected: T, timeout_s: float = HANG_S) -> None:
    """Wait until `read` returns `expected`; fails with what it returned last."""
    deadline = time.monotonic() + timeout_s
    while (seen := read()) != expected:
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {expected!r}; last seen: {seen!r}")
        time.sleep(0.05)
