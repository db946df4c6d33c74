"""A SQLAlchemy engine for the processes of this project; a backend brings its own."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from dispatcher.errors import DispatcherError, MissingExtra, needs_extra
from dispatcher.forks import run_in_forked_children

T = TypeVar("T")

#: Seconds that a row may be held by somebody else.
LOCK_TIMEOUT_S = 5
#: libpq's; a server that went away without a word is noticed within about 20 s.
_LIVELINESS = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,  # milliseconds
}
#: Of a text for logs and reports.
MAX_REASON_CHARS = 500


def make_engine(
    database_url: str,
    *,
    application_name: str,
    statement_timeout_s: int = 0,
    pool_size: int = 1,
    pool_pre_ping: bool = False,
) -> Engine:
    """Return an engine with psycopg2, whatever driver the URL names; it connects when it is used.

    A statement may take any time unless there is a `statement_timeout_s`. A forked child opens
    connections of its own. `options` of the URL are added to ours, and stand against them. Raises
    DispatcherError for a URL that names no database, MissingExtra without psycopg2.
    """
    try:
        with needs_extra("db"):  # create_engine imports the driver
            return _make_engine(database_url, application_name, statement_timeout_s, pool_size, pool_pre_ping)
    except MissingExtra:
        raise
    except (ArgumentError, ImportError) as exc:
        raise DispatcherError(f"the database cannot be used: {type(exc).__name__}") from exc


@contextmanager
def open_engine(
    database_url: str, *, application_name: str, statement_timeout_s: int = 0
) -> Iterator[Engine]:
    """Yield an engine as `make_engine` gives it, and close its connections at the end."""
    engine = make_engine(
        database_url, application_name=application_name, statement_timeout_s=statement_timeout_s
    )
    try:
        yield engine
    finally:
        engine.dispose()


def in_transaction(engine: Engine, work: Callable[[Connection], T], *, what: str) -> T:
    """Run `work` in one transaction; its database's errors become a DispatcherError that begins with `what`.

    Each statement sees what is committed by then, and waits a few seconds at most for a row.
    """
    try:
        with engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"))
            return work(connection)
    except SQLAlchemyError as exc:
        raise DispatcherError(f"{what}: {reason(exc)}") from exc


def reason(error: Exception) -> str:
    """Return the first line of what the driver says: no statement, and no DETAIL, which quotes rows."""
    original = getattr(error, "orig", None) or error
    lines = str(original).strip().splitlines()
    return (lines[0] if lines else repr(original))[:MAX_REASON_CHARS]


def _make_engine(
    database_url: str, application_name: str, statement_timeout_s: int, pool_size: int, pool_pre_ping: bool
) -> Engine:
    # Named, because the default driver of a plain postgresql:// differs between SQLAlchemy 2.0 and 2.1.
    url = make_url(database_url).set(drivername="postgresql+psycopg2")
    arguments = {
        **_LIVELINESS,
        "application_name": application_name,
        # connect_args replace what the URL says; of a setting that is given twice the last stands.
        "options": " ".join(
            (f"-c statement_timeout={statement_timeout_s}s", *url.normalized_query.get("options", ()))
        ),
    }
    engine = create_engine(
        url, pool_size=pool_size, pool_pre_ping=pool_pre_ping, connect_args=arguments, hide_parameters=True
    )
    known = weakref.ref(engine)

    def forget_connections() -> None:
        # They are the parent's: dropped without closing their sockets, as SQLAlchemy asks.
        if (engine := known()) is not None:
            engine.dispose(close=False)

    run_in_forked_children(forget_connections)
    return engine
