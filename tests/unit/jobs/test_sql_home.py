"""The SQL of the container is in one package, where each statement has its title."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support.source_tree import modules

HOME = "jobs/database"
SQL = re.compile(r"\b(SELECT|INSERT INTO|UPDATE \w+ SET|UPDATE \w+ AS|DELETE FROM)\b")
TITLE = re.compile(r"# [A-Z].*")


def statements(node: ast.AST) -> Iterator[int]:
    """Yield the lines of the strings below a node that hold SQL, also as parts of f-strings."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and SQL.search(inner.value):
            yield inner.lineno


def traces_of_sql(source: str) -> Iterator[int]:
    """Yield the lines that execute something, or hold a statement."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("execute", "executemany"):
            yield node.lineno
    yield from statements(tree)


def without_title(source: str) -> Iterator[str]:
    """Yield the names of constants that hold a statement, or a part of one, below no comment."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign) or not any(statements(node)):
            continue
        first = node.lineno - 1
        while first and lines[first - 1].startswith("#"):
            first -= 1
        if not TITLE.fullmatch(lines[first]):
            yield ast.unparse(node.targets[0])


def test_only_the_database_package_runs_sql() -> None:
    wrong = {
        f"{module.file}:{line}"
        for module in modules(("jobs",))
        if module.folder != HOME
        for line in traces_of_sql(module.text)
    }
    assert wrong == set()


def test_each_statement_has_its_title() -> None:
    wrong = {
        f"{module.file}: {name}"
        for module in modules(("jobs",))
        if module.folder == HOME
        for name in without_title(module.text)
    }
    assert wrong == set()


@pytest.mark.parametrize(
    "source",
    [
        "cursor.execute(statement)",
        "_FIND = 'SELECT id FROM lab_instances'",
        "def f(lab): return f'UPDATE lab_instances SET x = {lab}'",
    ],
)
def test_sql_is_noticed(source: str) -> None:
    assert [*traces_of_sql(source)] == [1]


def test_a_statement_without_a_title_is_noticed() -> None:
    assert [*without_title("# Find a lab.\n_A = 'SELECT 1'\n_B = 'SELECT 2'")] == ["_B"]
