"""A stop is not asked for again while deletes wait in their queue: containers are behind, and another delete
for each lab would put them further behind.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing

from dispatcher.topology import QUEUE_HIGH
from jobs.context import TaskContext
from jobs.database.due_rows import DueLab, Reason

logger = logging.getLogger(__name__)


def without_waiting_stops(context: TaskContext, due: Sequence[DueLab]) -> list[DueLab]:
    """Leave out the labs whose delete may still wait."""
    repeated = sum(lab.reason is Reason.STOP_REPEATED for lab in due)
    if not repeated or not _deletes_wait(context):
        return [*due]
    extra = {"action": "stops_wait", "labs": repeated}
    logger.info("deletes wait, so the stops of %d labs are not asked for again", repeated, extra=extra)
    return [lab for lab in due if lab.reason is not Reason.STOP_REPEATED]


def _deletes_wait(context: TaskContext) -> bool:
    from dispatcher.interrupts import Stop
    from jobs.verify.queues import BrokerAway, Queues
    from jobs.verify.still import least_waiting

    try:
        with closing(Queues(context.settings.broker)) as queues:
            return least_waiting(queues, Stop())[QUEUE_HIGH] > 0
    except BrokerAway as exc:
        logger.warning("the queue of deletes cannot be looked at: %s", exc, extra={"action": "queue_unknown"})
        return True
