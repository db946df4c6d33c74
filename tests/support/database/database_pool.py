"""Databases with the tables, lent to one test after the other, emptied in between."""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg2.errors

from dispatcher.migrations.migrate import VERSION_TABLE
from tests.support.database.postgres import Database, Server
from tests.support.waiting import SOON_S, eventually

#: One line for each thing but rows that a test can change: column, constraint, index, function, setting …
_SCHEMA = """
WITH ours AS (
  SELECT oid, nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
)
SELECT line FROM (
  SELECT 'schema ' || nspname FROM ours
  UNION ALL SELECT concat_ws(' ', 'relation', nspname, relname, relkind, relpersistence, reloptions, relacl)
    FROM pg_class JOIN ours ON ours.oid = relnamespace
  UNION ALL SELECT concat_ws(' ', 'column', attrelid::regclass, attname, format_type(atttypid, atttypmod),
      attnotnull, attidentity, attgenerated, pg_get_expr(adbin, adrelid))
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid JOIN ours ON ours.oid = relnamespace
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum WHERE attnum > 0
  UNION ALL SELECT concat_ws(' ', 'constraint', conrelid::regclass, conname, convalidated,
      pg_get_constraintdef(c.oid))
    FROM pg_constraint c JOIN ours ON ours.oid = connamespace
  UNION ALL SELECT concat_ws(' ', 'index', indexrelid::regclass, indisvalid, pg_get_indexdef(indexrelid))
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN ours ON ours.oid = relnamespace
  UNION ALL SELECT concat_ws(' ', 'trigger', tgrelid::regclass, tgname, tgenabled) FROM pg_trigger
    WHERE NOT tgisinternal
  UNION ALL SELECT concat_ws(' ', 'function', nspname, proname, md5(prosrc))
    FROM pg_proc JOIN ours ON ours.oid = pronamespace
  UNION ALL SELECT concat_ws(' ', 'type', nspname, typname, typtype)
    FROM pg_type JOIN ours ON ours.oid = typnamespace
  UNION ALL SELECT concat_ws(' ', 'rule', schemaname, tablename, rulename, definition) FROM pg_rules
    JOIN ours ON ours.nspname = schemaname
  UNION ALL SELECT concat_ws(' ', 'extension', extname, extversion) FROM pg_extension
  UNION ALL SELECT concat_ws(' ', 'setting', setrole, setconfig) FROM pg_db_role_setting
    JOIN pg_database ON pg_database.oid = setdatabase WHERE datname = current_database()
  UNION ALL SELECT concat_ws(' ', 'database', datallowconn, datconnlimit, datacl) FROM pg_database
    WHERE datname = current_database()
) AS lines (line) ORDER BY line
"""
_TABLES = """
SELECT format('%%I.%%I', nspname, relname) AS line
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind IN ('r', 'p') AND nspname !~ '^pg_' AND nspname <> 'information_schema' AND relname <> %s
ORDER BY 1
"""
_SESSIONS = """
SELECT concat_ws(' ', 'session', application_name, state, left(query, 100)) AS line, pid FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' ORDER BY 1
"""


class DatabasePool:
    """Databases of one test process; `thrown_away` counts those that could not be lent again."""

    def __init__(self, server: Server, template: str, *, patience_s: float = SOON_S) -> None:
        """`patience_s`: for sessions of processes that were killed, before they are somebody's error."""
        self._server = server
        self._patience_s = patience_s
        self._template = template
        self._idle: list[Database] = []
        self._schema: list[str] = []
        self.thrown_away = 0

    def lend(self) -> Database:
        """Return a database with the tables, without rows and with sequences at their start."""
        if self._idle:
            return self._idle.pop()
        database = self._server.create(template=self._template)
        self._schema = self._schema or _schema(database)
        return database

    def take_back(self, database: Database) -> tuple[list[str], list[str]]:
        """Return what a test left that would disturb others (sessions, locks), and what it changed."""
        database.close()
        left = _end_sessions(database, self._patience_s)
        found = _schema(database)
        changed = [f"{line} is gone" for line in self._schema if line not in found]
        changed += [f"{line} was left" for line in found if line not in self._schema]
        if changed:
            self.thrown_away += 1
            database.drop()
        else:
            _empty(database)
            self._idle.append(database)
        return left, changed

    def close(self) -> None:
        while self._idle:
            self._idle.pop().drop()


def _schema(database: Database) -> list[str]:
    version = f"SELECT 'version ' || version_num AS line FROM {VERSION_TABLE}"
    # A test may have dropped the table.
    with contextlib.suppress(psycopg2.errors.UndefinedTable):
        return _lines(database, _SCHEMA) + _lines(database, version)
    return _lines(database, _SCHEMA)


def _lines(database: Database, statement: str, *values: Any) -> list[str]:
    return [row["line"] for row in database.rows(statement, *values)]


def _end_sessions(database: Database, patience_s: float) -> list[str]:
    """Return the sessions that nobody ended, and end them, with the locks that they hold."""
    with contextlib.suppress(AssertionError):
        eventually(lambda: not _lines(database, _SESSIONS), patience_s)
        return []
    found = _lines(database, _SESSIONS)
    database.rows(f"SELECT pg_terminate_backend(pid) FROM ({_SESSIONS}) AS sessions")
    eventually(lambda: not _lines(database, _SESSIONS), what=f"sessions of {database.name} end")
    return found


def _empty(database: Database) -> None:
    tables = _lines(database, _TABLES, VERSION_TABLE)
    if tables:
        database.rows(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY CASCADE")
