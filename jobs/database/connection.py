"""Hold one connection to PostgreSQL, reopened when it was lost, and the locks of its session.

Its errors come out as JobError. Plain SQL, because SQLAlchemy costs 110 ms and 13 MiB per lab.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from dispatcher.stored_times import bear_odd_times
from jobs.failures import Failure
from jobs.waiting import through_blips

T = TypeVar("T")
logger = logging.getLogger(__name__)
Cursor = psycopg2.extensions.cursor
Values = Mapping[str, object] | Sequence[object] | None

#: Seconds of patience with a database that restarts, before the task goes back to the broker.
BLIP_S = 8.0
#: Errors after which a new connection may help: also after a failover that made the old server read-only.
_LOST = (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.errors.ReadOnlySqlTransaction)
#: Session settings; the times are in milliseconds. dispatcher.task_status.lock_task needs read committed,
#: whatever the server's default is.
_OPTIONS = (
    "-c statement_timeout=10000 -c lock_timeout=5000 -c idle_in_transaction_session_timeout=30000"
    " -c default_transaction_isolation=read\\ committed"
)

# Take a session's lock. The server's own keepalive would leave a container whose node vanished its lock for
# two hours.
_LOCK = (
    "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3;"
    " SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
)
# Give a session's lock back.
_UNLOCK = "SELECT pg_advisory_unlock(hashtextextended(%s, 0))"


def optional(cursor: Cursor, work: Callable[[], T]) -> T | None:
    """Run a part of a transaction that the rest can do without; None when the database refuses it."""
    cursor.execute("SAVEPOINT optional")
    try:
        found = work()
    except _LOST:
        raise
    except psycopg2.Error as exc:
        cursor.execute("ROLLBACK TO SAVEPOINT optional")
        extra = {"action": "optional_refused"}
        logger.error("the database refuses a part, the rest goes on: %s", exc, extra=extra)
        return None
    cursor.execute("RELEASE SAVEPOINT optional")
    return found


class Database:
    """One database connection, reopened when it was lost."""

    def __init__(self, url: str, *, application_name: str) -> None:
        self._url = url
        self._application_name = application_name
        self._connection: psycopg2.extensions.connection | None = None

    def warm(self) -> None:
        self._open()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def transaction(self, work: Callable[[Cursor], T]) -> T:
        """Run `work` in one transaction, again on a new connection if the old one was lost.

        Three round trips and those of `work`, which must be safe to repeat: the answer to a commit can
        be lost after it took effect. Raises TransientError when the database did not come back within a few
        seconds, PermanentError when it refuses the statement, for lack of a table or a right.
        """

        def in_transaction(connection: psycopg2.extensions.connection) -> T:
            with connection, connection.cursor() as cursor:
                return work(cursor)

        return self._on_connection(in_transaction)

    def at_once(self, work: Callable[[Cursor], T]) -> T:
        """Run `work`, one statement that is its own transaction: one round trip. Raises as `transaction`."""

        def at_once(connection: psycopg2.extensions.connection) -> T:
            with connection.cursor() as cursor:
                return work(cursor)

        return self._on_connection(at_once)

    def fetch(self, statement: str, values: Values = None) -> list[tuple[Any, ...]]:
        """Return the rows of one statement that is its own transaction, as `at_once`."""

        def work(cursor: Cursor) -> list[tuple[Any, ...]]:
            cursor.execute(statement, values)
            return cursor.fetchall()

        return self.at_once(work)

    def _on_connection(self, work: Callable[[psycopg2.extensions.connection], T]) -> T:
        def once() -> T:
            try:
                return work(self._open())
            except _LOST:
                self.close()
                raise

        try:
            return through_blips(once, on=_LOST, within_s=BLIP_S, what="database transaction")
        except _LOST as exc:
            # libpq has no code for it, and the text is OpenSSL's, which is not translated.
            if "certificate verify failed" in str(exc) or "root certificate file" in str(exc):
                raise Failure.DATABASE_UNTRUSTED.error(evidence=f"DATABASE_URL: {exc}".strip()) from exc
            raise Failure.DATABASE_AWAY.error(evidence=str(exc).strip()) from exc
        except psycopg2.Error as exc:
            evidence = f"{type(exc).__name__}: {exc}".strip()
            raise Failure.DATABASE_REFUSES.error(evidence=evidence) from exc

    def _open(self) -> psycopg2.extensions.connection:
        if self._connection is None or self._connection.closed:
            # An argument replaces what the URL says: its search_path, or whatever else it sets, has to stay.
            given = psycopg2.extensions.parse_dsn(self._url).get("options", "")
            self._connection = psycopg2.connect(
                self._url,
                connect_timeout=5,
                application_name=self._application_name,
                # A server that vanished without a word is noticed within 25 s, not by the kernel's 15 min.
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=3,
                tcp_user_timeout=15_000,
                options=f"{given} {_OPTIONS}".strip(),
            )
            # `with connection` begins a transaction all the same.
            self._connection.autocommit = True
            bear_odd_times(self._connection)
        return self._connection


@contextmanager
def session_lock(database: Database, name: str, *, pause: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock of this name, across transactions; False: another session holds it.

    A process that dies gives it back. With `pause` it is asked for again after each pause, which raises to
    give up. Raises JobError.
    """
    while not (held := database.fetch(_LOCK, (name,))[0][0]) and pause is not None:
        pause()
    try:
        yield held
    finally:
        if held:
            database.fetch(_UNLOCK, (name,))
