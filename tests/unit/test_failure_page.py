"""The table of failures in docs/reference.md is that of jobs.failures."""

from __future__ import annotations

from pathlib import Path

from jobs.failures import Failure

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"
HEADER = "| cause | category | tried again | told | the student reads |\n|---|---|---|---|---|\n"


def _row(failure: Failure) -> str:
    again = "yes" if failure.retry else "no"
    sentence = failure.value.sentence + ("…" if failure.retry else "")
    return (
        f"| `{failure.cause}` | `{failure.category.value}` | {again} | {failure.told.value} | {sentence} |\n"
    )


def test_the_page_has_every_failure_as_it_is() -> None:
    expected = HEADER + "".join(map(_row, Failure))
    _, found, table = PAGE.read_text().partition(HEADER)
    assert found + table.partition("\n\n")[0] + "\n" == expected, f"the table has to be:\n{expected}"
