"""Progress lines: what is being done, how long it usually takes, how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def step(title: str, usual: str) -> Iterator[None]:
    """Print the title with the usual duration, then the measured one."""
    print(f"-> {title} (usually {usual})", flush=True)
    started = time.monotonic()
    try:
        yield
    except BaseException:
        print(f"   FAILED after {time.monotonic() - started:.1f} s", flush=True)
        raise
    print(f"   done in {time.monotonic() - started:.1f} s", flush=True)


def note(text: str) -> None:
    """Print a remark below the step before it."""
    print(f"   {text}", flush=True)
