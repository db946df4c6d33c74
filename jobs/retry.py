"""Retries inside one container, for blips of a few seconds. Longer trouble goes back to the broker."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
logger = logging.getLogger(__name__)


def through_blips(call: Callable[[], T], *, on: tuple[type[Exception], ...], within_s: float, what: str) -> T:
    """Call until it succeeds, retrying the errors `on` with jittered waits for at most `within_s` seconds.

    tenacity is imported only once something failed: it costs 25 ms, which every lab would pay.
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
