"""Locks that a database session holds, across its transactions: a process that dies gives them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from jobs.database import Cursor, Database

# The server's own keepalive would leave a container whose node vanished its lock for two hours.
_TAKE = (
    "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3;"
    " SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
)
_LEAVE = "SELECT pg_advisory_unlock(hashtextextended(%s, 0))"


@contextmanager
def session_lock(database: Database, name: str, *, pause: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock of this name; False: another session holds it.

    With `pause` it is asked for again after each pause, which raises to give up. Raises JobError.
    """
    while not (held := database.transaction(partial(_ask, _TAKE, name))) and pause is not None:
        pause()
    try:
        yield held
    finally:
        if held:
            database.transaction(partial(_ask, _LEAVE, name))


def _ask(statement: str, name: str, cursor: Cursor) -> bool:
    cursor.execute(statement, (name,))
    return bool(cursor.fetchall()[0][0])
