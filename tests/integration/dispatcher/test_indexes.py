"""What the operator's commands ask of tables with millions of rows finds an index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from dispatcher.migrations import migrate as migration
from tests.support.database.postgres import Database

ROOT = Path(__file__).parents[3]

QUERIES = {
    "runs under way": (
        "SELECT queue FROM task_ledger WHERE outcome = 'started' AND claimed_at > now() - interval '20 min'",
        "task_ledger_started_claimed_at_idx",
    ),
    "runs that are tried again": (
        "SELECT task_id FROM task_ledger WHERE outcome = 'retried' AND finished_at > now() - interval '1 h'",
        "task_ledger_retried_finished_at_idx",
    ),
    "live labs, a page": (
        "SELECT id FROM lab_instances WHERE id > 5 AND status IN ('PENDING', 'RUNNING')"
        " ORDER BY id LIMIT 1000",
        "lab_instances_live_id_idx",
    ),
    "what was done with a lab's dead letters": (
        "SELECT actor FROM dead_letter_actions WHERE lab_instance_id = 5",
        "dead_letter_actions_lab_instance_id_idx",
    ),
    "what was done with a message, by the beginning of its key": (
        "SELECT actor FROM dead_letter_actions WHERE message_key LIKE '3f8e5ab27c10%%'",
        "dead_letter_actions_message_key_idx",
    ),
}


@pytest.mark.parametrize(("query", "index"), QUERIES.values(), ids=QUERIES)
def test_a_query_of_an_operator_reads_an_index_alone(database: Database, query: str, index: str) -> None:
    # The tables are empty, for which PostgreSQL would rather read them whole.
    plan = database.rows(f"SET enable_seqscan = off; SET enable_bitmapscan = off; EXPLAIN {query}")
    lines = [line["QUERY PLAN"].strip() for line in plan]
    assert any(f"using {index} " in line for line in lines), lines
    if "LIMIT" not in query:
        assert any(line.startswith("Index Cond: ") for line in lines), lines


def test_the_indexes_of_the_reference_are_those_of_the_upgrade(
    bare_database: Database, database: Database
) -> None:
    engine = create_engine(bare_database.url.replace("://", "+psycopg2://", 1))
    for revision in ("0001", "0002", "0003"):
        with engine.begin() as connection:
            assert migration._apply_one(connection) == revision
    engine.dispose()
    page = (ROOT / "docs" / "reference" / "tables.md").read_text()
    (block,) = re.findall(r"```sql\n(.*?)```", page, flags=re.DOTALL)
    for statement in block.splitlines():
        bare_database.rows(statement)
    found = (
        "SELECT indexname, indexdef FROM pg_indexes WHERE indexname ~ '_(started|retried|live)_' ORDER BY 1"
    )
    assert bare_database.rows(found) == database.rows(found)
    migration.upgrade(bare_database.url)
    assert bare_database.rows(found) == database.rows(found)
    assert len(database.rows(found)) == 3
