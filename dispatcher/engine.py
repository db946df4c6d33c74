"""Open engines and transactions of SQLAlchemy for our own processes; a backend may bring its engine."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Session, scoped_session

from dispatcher.errors import DispatcherError, MissingExtra, needs_extra
from dispatcher.forks import call_in_forked_children
from dispatcher.stored_times import bear_odd_times

#: Seconds that a statement waits for a row or a task that somebody else holds.
LOCK_TIMEOUT_S = 5
#: Parameters of libpq by which a server that went away without a word is noticed within about 20 s.
_LIVELINESS = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,  # milliseconds
}
#: Longest text kept for logs and reports, in characters.
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
        url = psycopg2_url(database_url)
        arguments = {
            **_LIVELINESS,
            "application_name": application_name,
            # connect_args replace what the URL says; of a setting that is given twice the last stands.
            "options": " ".join(
                (f"-c statement_timeout={statement_timeout_s}s", *url.normalized_query.get("options", ()))
            ),
        }
        with needs_extra("db"):  # create_engine imports the driver
            engine = create_engine(
                url,
                pool_size=pool_size,
                pool_pre_ping=pool_pre_ping,
                connect_args=arguments,
                hide_parameters=True,
            )
    except MissingExtra:
        raise
    except (ArgumentError, ImportError) as exc:
        raise DispatcherError(f"the database cannot be used: {type(exc).__name__}") from exc
    event.listen(engine, "connect", lambda opened, _record: bear_odd_times(opened))
    known = weakref.ref(engine)

    def forget_connections() -> None:
        # They are the parent's: dropped without closing their sockets, as SQLAlchemy asks.
        if (engine := known()) is not None:
            engine.dispose(close=False)

    call_in_forked_children(forget_connections)
    return engine


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


@contextmanager
def transaction(engine: Engine, *, what: str, locks: bool = False) -> Iterator[Connection]:
    """Yield a connection in a transaction, of which each statement sees what is committed by then.

    The database's errors become a DispatcherError that begins with `what`. With `locks`, a statement waits
    LOCK_TIMEOUT_S for what another transaction holds, and no longer.
    """
    try:
        with engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
            if locks:
                connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"))
            yield connection
    except SQLAlchemyError as exc:
        raise DispatcherError(f"{what}: {reason(exc)}") from exc


def connection_of(
    session: Session | scoped_session[Session] | Connection, table: type[DeclarativeBase]
) -> Connection:
    """Return the connection of a caller's transaction; `Session.execute` would flush unfinished objects."""
    if isinstance(session, Connection):
        return session
    return session.connection(bind_arguments={"mapper": table})


def reason(error: Exception) -> str:
    """Return the first line of what the driver says: no statement, and no DETAIL, which quotes rows."""
    original = getattr(error, "orig", None) or error
    lines = str(original).strip().splitlines()
    return (lines[0] if lines else repr(original))[:MAX_REASON_CHARS]


def psycopg2_url(database_url: str) -> URL:
    """Return the URL with its driver: SQLAlchemy 2.0 and 2.1 take different ones for a plain postgresql://."""
    return make_url(database_url).set(drivername="postgresql+psycopg2")
