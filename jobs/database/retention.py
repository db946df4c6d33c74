"""Rows that nobody needs any more: cancellations of tasks that are over, old runs of periodic tasks.

A cleanup deletes a bounded number of them, the oldest first; what is left, the next one deletes.
"""

from __future__ import annotations

import logging

from dispatcher.broker.delay_ladder import MAX_DELAY_S
from dispatcher.tasks import CLEANUP_TIMEOUT_LABS, HEALTH_CHECK_PODS, SYNC_LAB_STATUS
from jobs.database.connection import Cursor, Database

logger = logging.getLogger(__name__)

#: Days after which nobody needs the cancellation of a task that is over.
KEEP_CANCELLATIONS_DAYS = 30
#: Rows per statement, which is also a run's share of each kind.
ROWS = 1000
# Delete old cancellations. A task that never came may still wait for its time, as long as the ladder lets it.
_CANCELLATIONS = """
DELETE FROM task_cancellations WHERE task_id IN (
    SELECT task_id FROM task_cancellations AS cancelled
    WHERE requested_at < now() - make_interval(days => %s) AND (
        requested_at < now() - make_interval(secs => %s)
        OR EXISTS (SELECT FROM task_ledger WHERE task_ledger.task_id = cancelled.task_id
                   AND outcome NOT IN ('started', 'retried')))
    LIMIT %s)
"""
# Delete old runs of a periodic task. By the index that history is read by, from its old end: no look at what
# is to stay. A run about one lab, as a repair of sync, is part of that lab's story.
_RUNS = """
DELETE FROM task_ledger WHERE id IN (
    SELECT id FROM (SELECT id, claimed_at FROM task_ledger
                    WHERE task_name = %s AND lab_instance_id IS NULL ORDER BY id LIMIT %s) AS oldest
    WHERE claimed_at < now() - make_interval(days => %s))
"""


def forget_old_rows(database: Database, keep_periodic_runs_days: int) -> None:
    """Delete what is older than it is kept. Raises JobError."""

    def forget(cursor: Cursor) -> tuple[int, int]:
        cursor.execute(_CANCELLATIONS, (KEEP_CANCELLATIONS_DAYS, MAX_DELAY_S, ROWS))
        cancellations, runs = cursor.rowcount, 0
        for name in (CLEANUP_TIMEOUT_LABS, HEALTH_CHECK_PODS, SYNC_LAB_STATUS):
            cursor.execute(_RUNS, (name, ROWS, keep_periodic_runs_days))
            runs += cursor.rowcount
        return cancellations, runs

    cancellations, runs = database.transaction(forget)
    if cancellations or runs:
        extra = {"action": "old_rows_forgotten", "cancellations": cancellations, "runs": runs}
        logger.info("old rows are forgotten", extra=extra)
