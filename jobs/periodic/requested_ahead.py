"""A lab that is asked for ahead of its time waits longer than any limit, and is not overdue.

What the outbox holds, it says itself. A create with an eta that is published waits on the broker's delay
ladder, which nobody can search: only how many messages wait there is known, and of how many of them the
ledger knows. While there are others, a lab that no container has met yet may be one of them. It is spared
until its own expires_at, after which it would be stopped as soon as it was started.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing

from jobs.context import TaskContext
from jobs.database.due_rows import DueLab

logger = logging.getLogger(__name__)


def without_requested_ahead(context: TaskContext, due: Sequence[DueLab]) -> list[DueLab]:
    """Leave out those of the labs that may be asked for ahead. Raises JobError."""
    doubtful = sum(not lab.surely_not_ahead for lab in due)
    if not doubtful or not _may_wait_ahead(context):
        return [*due]
    extra = {"action": "overdue_spared", "labs": doubtful}
    logger.info("%d PENDING labs may be asked for ahead, and are left alone", doubtful, extra=extra)
    return [lab for lab in due if lab.surely_not_ahead]


def _may_wait_ahead(context: TaskContext) -> bool:
    from jobs.verify import rows
    from jobs.verify.look import LADDER
    from jobs.verify.queues import BrokerAway, Queues

    try:
        with closing(Queues(context.settings.broker)) as queues:
            if not queues.count(LADDER):
                return False
            # Before the count, because what the ledger knows is still there a moment later.
            known = rows.known_delays(context.labs)
            return queues.count(LADDER) > known
    except BrokerAway as exc:
        logger.warning("the delay ladder cannot be looked at: %s", exc, extra={"action": "ladder_unknown"})
        return True
