"""docs/reference/failures.md has the table and the sentences of jobs.failures."""

from __future__ import annotations

import textwrap
from pathlib import Path

from jobs.failures import Failure

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "failures.md").read_text()
HEADER = "| cause | category | retried | notified |\n|---|---|---|---|\n"
SENTENCES = "## What the student reads\n"


def _row(failure: Failure) -> str:
    again = "yes" if failure.retry else "no"
    return f"| `{failure.cause}` | `{failure.category.value}` | {again} | {failure.audience.value} |\n"


def _sentence(failure: Failure) -> str:
    text = f"- `{failure.cause}`: {failure.value.sentence}{'…' if failure.retry else ''}"
    return textwrap.fill(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def test_the_page_has_every_failure_as_it_is() -> None:
    expected = HEADER + "".join(map(_row, Failure))
    _, found, table = PAGE.partition(HEADER)
    assert found + table.partition("\n\n")[0] + "\n" == expected, f"the table has to be:\n{expected}"


def test_the_page_has_what_the_student_reads() -> None:
    expected = "\n".join(map(_sentence, Failure)) + "\n"
    found = PAGE.partition(SENTENCES)[2].partition("\n\n- `")[2]
    assert "- `" + found == expected, f"the sentences have to be:\n{expected}"
