"""A database of one test on a real PostgreSQL, cloned from a template that is migrated once."""

from __future__ import annotations

import contextlib
import uuid
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg2
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT, connection

from dispatcher.results import ResultStore


def with_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def _autocommit(url: str) -> connection:
    opened = psycopg2.connect(url, connect_timeout=5)
    opened.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
    return opened


class Server:
    """Make and drop databases."""

    def __init__(self, url: str) -> None:
        self.url = url

    def create(self, *, template: str = "template1") -> Database:
        name = f"test_{uuid.uuid4().hex[:12]}"
        self._run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return Database(self, name)

    def drop(self, name: str) -> None:
        self._run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _run(self, statement: str) -> None:
        opened = _autocommit(self.url)
        try:
            opened.cursor().execute(statement)
        finally:
            opened.close()


class Database:
    """One database; every call commits, on a connection that no other thread uses meanwhile."""

    def __init__(self, server: Server, name: str) -> None:
        self._server = server
        self.name = name
        self.url = with_database(server.url, name)
        #: Open ones that nobody uses just now.
        self._idle: list[connection] = []

    def drop(self) -> None:
        self.close()
        self._server.drop(self.name)

    @cached_property
    def results(self) -> ResultStore:
        """What a backend sees of its tasks."""
        return ResultStore(self.url)

    def close(self) -> None:
        """Close what this object opened."""
        while self._idle:
            self._idle.pop().close()
        if results := vars(self).pop("results", None):
            results.close()

    def rows(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        opened = self._take()
        try:
            cursor = opened.cursor()
            cursor.execute(statement, values)
            names = [column.name for column in cursor.description or ()]
            found = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()] if names else []
        except BaseException:
            opened.close()
            raise
        self._idle.append(opened)
        return found

    def _take(self) -> connection:
        while self._idle:
            # Another thread may be quicker; and a test that ends all sessions ends this one too.
            with contextlib.suppress(psycopg2.Error, IndexError):
                opened = self._idle.pop()
                opened.cursor().execute("SELECT")
                return opened
        return _autocommit(self.url)

    def add_lab(self, **columns: Any) -> int:
        """Insert a lab as a backend does; without arguments as little as a backend may give."""
        given = {"lab_id": 7, "student_id": 42, **columns}
        marks = ", ".join(["%s"] * len(given))
        statement = f"INSERT INTO lab_instances ({', '.join(given)}) VALUES ({marks}) RETURNING id"
        return int(self.rows(statement, *given.values())[0]["id"])

    def lab(self, lab_instance_id: int) -> dict[str, Any]:
        (row,) = self.rows("SELECT * FROM lab_instances WHERE id = %s", lab_instance_id)
        return row

    def expire(self, lab_instance_id: int) -> None:
        statement = "UPDATE lab_instances SET expires_at = now() - interval '1 minute' WHERE id = %s"
        self.rows(statement, lab_instance_id)

    def ledger(self) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM task_ledger ORDER BY id")

    def outcomes(self) -> list[str]:
        return [row["outcome"] for row in self.ledger()]

    def terminate(self, application_name: str) -> int:
        """End the sessions of an application, as a restart of the server does; return how many."""
        return len(self.sessions("application_name = %s", application_name, what="pg_terminate_backend(pid)"))

    def sessions(self, condition: str, *values: Any, what: str = "pid") -> list[dict[str, Any]]:
        """Return rows of pg_stat_activity, of this database alone."""
        ours = "datname = current_database() AND pid <> pg_backend_pid()"
        return self.rows(f"SELECT {what} FROM pg_stat_activity WHERE {ours} AND {condition}", *values)

    def waits(self, condition: str = "true") -> bool:
        """Tell whether a session of this database waits for a lock; `condition` is about pg_locks.

        Databases that are made from one template have the same numbers of tables.
        """
        waiting = f"pid IN (SELECT pid FROM pg_locks WHERE NOT granted AND {condition})"
        return bool(self.sessions(waiting))

    def evidence(self) -> str:
        labs = self.rows(
            "SELECT id, status, stop_requested_at, error_category FROM lab_instances ORDER BY id"
        )
        runs = [
            (row["task_id"], row["attempt"], row["outcome"], row["error_message"]) for row in self.ledger()
        ]
        return "\n".join(map(str, [*labs, *runs]))
