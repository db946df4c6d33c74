"""A task is begun or cancelled, never both: whoever decides holds the task's lock until its commit.

The lock comes in a statement of its own, before the one that looks: PostgreSQL takes a statement's
snapshot before it waits, so READ COMMITTED and two statements are both needed.
"""

from __future__ import annotations

#: Seconds; a begin and a cancel hold the lock for a few milliseconds.
LOCK_TIMEOUT_S = 5


def lock_task(placeholder: str) -> str:
    """Return the statement that locks a task until the end of the transaction.

    `placeholder` stands for the task id in the driver's style. Two ids of one hash wait for each
    other, no more.
    """
    return f"SELECT pg_advisory_xact_lock(hashtextextended({placeholder}, 0))"
