"""Rows as an older schema let them be: times that no datetime holds, ids at the ends of bigint."""

from __future__ import annotations

from tests.support.database.postgres import Database

#: Times that PostgreSQL takes and Python's datetime does not, or only just.
ODD_TIMES = ("-infinity", "4713-01-01Z BC", "0001-01-01Z", "infinity", "12026-01-01Z", "294276-12-31Z")


def old_rows_may_have_any_time(database: Database) -> None:
    """Take away what refuses such rows, as if they were there before it."""
    checks = database.rows(
        "SELECT conname FROM pg_constraint WHERE conrelid = 'lab_instances'::regclass AND contype = 'c'"
        " AND conname <> 'lab_instances_status_check'"
    )
    for check in checks:
        database.rows(f'ALTER TABLE lab_instances DROP CONSTRAINT "{check["conname"]}"')
