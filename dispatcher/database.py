"""Create and upgrade the tables."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from dispatcher.errors import DispatcherError

#: Advisory lock key, so that two setup runs do not migrate at once ("autolabs" in ASCII, cut).
_LOCK_KEY = 0x6175746F6C6162

VERSION_TABLE = "autolabs_alembic_version"


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def upgrade(database_url: str) -> str:
    """Apply the missing migrations and return the revision reached; idempotent. Raises DispatcherError."""
    # Named, because the default driver of a plain postgresql:// differs between SQLAlchemy 2.0 and 2.1.
    engine = create_engine(make_url(database_url).set(drivername="postgresql+psycopg2"))
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
            return context.get_current_revision() or "none"
    except SQLAlchemyError as exc:
        raise DispatcherError(f"database was not upgraded: {exc}") from exc
    finally:
        engine.dispose()
