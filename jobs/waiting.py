"""Wait for what is outside of the container, never longer than it is worth: an answer, a blip, an address."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
logger = logging.getLogger(__name__)

#: Seconds after which a lab counts as RUNNING all the same: its pod is Ready, only the way there is slow.
_REACHED_S = 3.0
#: Short, because an address that no endpoint serves yet may swallow the first packet, and TCP repeats it
#: after a second. A cluster's own network answers within a few milliseconds.
_CONNECT_S = 0.05
_RECONNECT_S = 0.02


def through_blips(call: Callable[[], T], *, on: tuple[type[Exception], ...], within_s: float, what: str) -> T:
    """Call until it succeeds, retrying the errors `on` with jittered waits for at most `within_s` seconds.

    Longer trouble goes back to the broker. tenacity is imported only once something failed: it costs 25 ms,
    which every lab would pay.
    """
    try:
        return call()
    except on as exc:
        logger.warning("%s failed, trying again: %s", what, exc, extra={"action": "blip"})
    from tenacity import (
        Retrying,
        before_sleep_log,
        retry_if_exception_type,
        stop_before_delay,
        wait_random_exponential,
    )

    retrying = Retrying(
        retry=retry_if_exception_type(on),
        stop=stop_before_delay(within_s),
        wait=wait_random_exponential(multiplier=0.2, max=2),
        before_sleep=before_sleep_log(logger, logging.WARNING),
        reraise=True,
    )
    return retrying(call)


class TookTooLong(Exception):
    """Raised when there was no answer in time; the call may still go on."""


def within(timeout_s: float, call: Callable[[], T]) -> T:
    """Return what `call` returns, or raise what it raises, within `timeout_s` seconds.

    The thread of a call that takes longer is left behind: the process is about to end. Timeouts of sockets
    are for each read, so that a peer that sends a byte now and then is never late.
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


def wait_answers(host: str, port: int) -> bool:
    """Return True once the address accepts a connection, False when it did not for three seconds.

    The nodes' proxies learn of a Ready pod some 100 ms after the API does.
    """
    deadline = time.monotonic() + _REACHED_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), timeout=_CONNECT_S).close()
        except OSError:
            time.sleep(_RECONNECT_S)
        else:
            return True
    return False
