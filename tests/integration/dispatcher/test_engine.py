"""The engine of this project's processes, on a real server."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import IntegrityError

from dispatcher.engine import make_engine, reason
from tests.support.database.postgres import Database

SHOW = text("SELECT current_setting('search_path'), current_setting('statement_timeout')")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ('"$user", public', "7s")),
        (["-csearch_path=foo"], ("foo", "7s")),
        (["-c search_path=foo -c statement_timeout=3s"], ("foo", "3s")),
        (["-csearch_path=foo", "-cstatement_timeout=2s"], ("foo", "2s")),
    ],
    ids=["none", "a search path", "a timeout of one's own", "given twice"],
)
def test_options_of_the_url_are_kept(
    database: Database, options: list[str], expected: tuple[str, str]
) -> None:
    url = make_url(database.url).update_query_dict({"options": options} if options else {})
    engine = make_engine(
        url.render_as_string(hide_password=False), application_name="test-options", statement_timeout_s=7
    )
    with engine.connect() as connection:
        assert connection.execute(SHOW).one() == expected
    engine.dispose()


def test_a_reason_quotes_neither_the_statement_nor_the_row(engine: Engine) -> None:
    add = text("INSERT INTO task_outbox (task_id, task_name) VALUES (:id, 't'), (:id, 't')")
    with pytest.raises(IntegrityError) as caught, engine.begin() as connection:
        connection.execute(add, {"id": "private"})
    assert "private" in str(caught.value.orig)
    assert reason(caught.value).startswith("duplicate key value violates unique constraint")
    assert "private" not in reason(caught.value)
