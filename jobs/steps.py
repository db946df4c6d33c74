"""The steps of a task on its way: one log line each, and the seconds since the claim for the ledger."""

from __future__ import annotations

import logging
import time

from jobs.labs import TaskRunRecord

logger = logging.getLogger(__name__)


def mark(record: TaskRunRecord, step: str) -> None:
    """Note that a step is done."""
    elapsed_s = round(time.monotonic() - record.claimed_monotonic, 3)
    record.details.setdefault("steps", {})[step] = elapsed_s
    logger.info("step %s done", step, extra={"action": "step", "step": step, "elapsed_s": elapsed_s})
