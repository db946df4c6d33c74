"""Run by Alembic: apply the migrations over the connection that dispatcher.migrations.migrate passes in."""

from __future__ import annotations

from alembic import context

from dispatcher.migrations.migrate import VERSION_TABLE
from dispatcher.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # The database belongs to the backend too: its own alembic_version must not be touched.
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
