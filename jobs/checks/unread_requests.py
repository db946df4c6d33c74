"""Leave out labs whose request may still wait on the broker, where nobody can read whose a message is.

The cleanup counts the messages, and moves none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing

from dispatcher.broker.topology import QUEUE_HIGH
from jobs.database.due_rows import DueLab, Reason
from jobs.handlers.context import TaskContext

logger = logging.getLogger(__name__)


def without_unread(context: TaskContext, due: Sequence[DueLab]) -> list[DueLab]:
    """Leave out the labs whose create, or whose delete, may still wait. Raises JobError."""
    return _without_waiting_stops(context, _without_early_requests(context, due))


def _without_early_requests(context: TaskContext, due: Sequence[DueLab]) -> list[DueLab]:
    """Leave out PENDING labs that may be asked for ahead of their time: these wait longer than any limit.

    What the outbox holds, it says itself. A create with an eta that is published waits on the broker's delay
    ladder, which nobody can search: only how many messages wait there is known, and of how many of them the
    ledger knows. While there are others, a lab that no container has met yet may be one of them. It is spared
    until its own expires_at, after which it would be stopped as soon as it was started.
    """
    doubtful = sum(not lab.certainly_started for lab in due)
    if not doubtful or not _creates_wait(context):
        return [*due]
    extra = {"action": "overdue_spared", "labs": doubtful}
    logger.info("%d PENDING labs may be asked for ahead, and are left alone", doubtful, extra=extra)
    return [lab for lab in due if lab.certainly_started]


def _without_waiting_stops(context: TaskContext, due: Sequence[DueLab]) -> list[DueLab]:
    """Leave out stops that would be asked for again while deletes wait in their queue.

    Containers are behind then, and another delete for each lab would put them further behind.
    """
    repeated = sum(lab.reason is Reason.STOP_REPEATED for lab in due)
    if not repeated or not _deletes_wait(context):
        return [*due]
    extra = {"action": "stops_wait", "labs": repeated}
    logger.info("deletes wait, so the stops of %d labs are not asked for again", repeated, extra=extra)
    return [lab for lab in due if lab.reason is not Reason.STOP_REPEATED]


def _creates_wait(context: TaskContext) -> bool:
    from jobs.verify.queues import BrokerAway, Queues

    try:
        with closing(Queues(context.settings.broker)) as queues:
            delayed, known = queues.count_delayed(context.labs)
            return delayed > known
    except BrokerAway as exc:
        logger.warning("the delay ladder cannot be looked at: %s", exc, extra={"action": "ladder_unknown"})
        return True


def _deletes_wait(context: TaskContext) -> bool:
    from jobs.verify.queues import BrokerAway, Queues

    try:
        with closing(Queues(context.settings.broker)) as queues:
            return queues.least_waiting()[QUEUE_HIGH] > 0
    except BrokerAway as exc:
        logger.warning("the queue of deletes cannot be looked at: %s", exc, extra={"action": "queue_unknown"})
        return True
