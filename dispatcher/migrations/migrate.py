"""Create and upgrade the tables, while the platform is at work; `autolabs db upgrade` calls it."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from dispatcher.engine import psycopg2_url
from dispatcher.errors import DispatcherError

#: Advisory lock key, so that two setup runs do not migrate at once ("autolabs" in ASCII, cut).
_LOCK_KEY = 0x6175746F6C6162

VERSION_TABLE = "autolabs_alembic_version"

#: Seconds for which a platform at work may stand still while a migration waits for a table.
LOCK_TIMEOUT_S = 3
LOCK_ATTEMPTS = 5
_PAUSE_S = 1.0
_LOCK_NOT_AVAILABLE = "55P03"

logger = logging.getLogger(__name__)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


def upgrade(database_url: str) -> str:
    """Apply the missing migrations and return the revision reached; idempotent.

    The platform may be at work: each migration is a transaction of its own, which waits for a table
    LOCK_TIMEOUT_S seconds at most, because whoever comes after it waits as well, and is tried again
    LOCK_ATTEMPTS times. Raises DispatcherError.
    """
    engine = create_engine(psycopg2_url(database_url))
    try:
        while (reached := _apply_next(engine)) != _head():
            logger.info("database is at revision %s", reached, extra={"action": "migrated"})
        return reached
    except (SQLAlchemyError, RevisionError) as exc:
        raise DispatcherError(f"database was not upgraded: {exc}") from exc
    finally:
        engine.dispose()


def _head() -> str:
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def _apply_next(engine: Engine) -> str:
    for attempt in range(1, LOCK_ATTEMPTS + 1):
        try:
            with engine.begin() as connection:
                return _apply_one(connection)
        except OperationalError as exc:
            if getattr(exc.orig, "pgcode", None) != _LOCK_NOT_AVAILABLE:
                raise
            last = exc
            logger.warning("a table is in use, attempt %d: %s", attempt, exc.orig)
            # Those who wait behind this one get their turn.
            time.sleep(_PAUSE_S)
    raise DispatcherError(
        f"database was not upgraded: {LOCK_ATTEMPTS} times a transaction of somebody else held a table for"
        f" more than {LOCK_TIMEOUT_S} s; pg_stat_activity shows which. What was done so far stays."
    ) from last


def _apply_one(connection: Connection) -> str:
    """Apply the next migration, if there is one, and return the revision reached."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
    # After the lock above: another setup run may take as long as it needs.
    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"))
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    config = _config()
    missing = list(
        ScriptDirectory.from_config(config).iterate_revisions("head", context.get_current_revision())
    )
    if missing:
        config.attributes["connection"] = connection
        command.upgrade(config, missing[-1].revision)
    return str(context.get_current_revision())
