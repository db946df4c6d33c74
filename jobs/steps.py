"""The steps of a task on its way: one log line each, and the seconds since the claim for the ledger."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

logger = logging.getLogger(__name__)

#: Called with the name of each step in the thread that is there. Empty in the image, where no setting and
#: no module fills it: tests run a container in a process of theirs, and end it at a step.
observers: list[Callable[[str], None]] = []


class Run(Protocol):
    """The part of jobs.database.ledger.TaskRunRecord that a step is noted in."""

    claimed_monotonic: float
    details: dict[str, Any]


def reached(step: str) -> None:
    """Tell the observers where the container is."""
    for observer in observers:
        observer(step)


def mark(record: Run, step: str) -> None:
    elapsed_s = round(time.monotonic() - record.claimed_monotonic, 3)
    record.details.setdefault("steps", {})[step] = elapsed_s
    logger.info("step %s done", step, extra={"action": "step", "step": step, "elapsed_s": elapsed_s})
    reached(step)
