"""What the server imports whose forks tests kill (tests.support.forked)."""

from __future__ import annotations

import psycopg2  # noqa: F401
import sqlalchemy.dialects.postgresql.psycopg2  # noqa: F401

import dispatcher.dlq.run
import dispatcher.outbox_commands
import dispatcher.outbox_listener  # noqa: F401
import tests.integration.dlq_victim
import tests.integration.outbox_victim  # noqa: F401
