"""A call that must not hold up its caller: the thread of one that takes too long is left behind.

For what is worth seconds and no more, in a process that is about to end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class TookTooLong(Exception):
    """Raised when there was no answer in time; the call may still go on."""


def within(timeout_s: float, call: Callable[[], T]) -> T:
    """Return what `call` returns, or raise what it raises, within `timeout_s` seconds.

    Timeouts of sockets are for each read, so that a peer that sends a byte now and then is never late.
    """
    answers: list[T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            answers.append(call())
        except Exception as exc:  # raised again in the thread that asked
            errors.append(exc)

    thread = threading.Thread(target=work, name="bounded", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if not answers:
        raise TookTooLong(f"no answer within {timeout_s:g} s")
    return answers[0]
