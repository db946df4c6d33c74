"""Pages can be read in a terminal: short lines, short paragraphs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from tests.unit.project.test_docs import PAGES, name_of

MOST_CHARACTERS, MOST_LINES = 120, 4
#: A row of a table, a heading or indented code: not part of a paragraph.
_ALONE = re.compile(r"\||#|    ")
_ITEM = re.compile(r" *([-*]|\d+\.) ")


def numbered_prose(page: Path) -> Iterator[tuple[int, str]]:
    """Return the lines outside fenced code, a fence as an empty line."""
    fenced = False
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        if not fenced:
            yield number, "" if fence else line


def paragraphs(page: Path) -> Iterator[list[tuple[int, str]]]:
    """Return paragraphs and items of lists."""
    starts = 0

    def place(numbered: tuple[int, str]) -> int:
        nonlocal starts
        starts += not numbered[1].strip() or bool(_ITEM.match(numbered[1]))
        return starts

    lines = [one for one in numbered_prose(page) if not _ALONE.match(one[1])]
    for _, group in groupby(lines, key=place):
        yield [one for one in group if one[1].strip()]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_line_is_too_long(page: Path) -> None:
    long = [
        f"{page.name}:{number}"
        for number, line in numbered_prose(page)
        if len(line) > MOST_CHARACTERS and not re.fullmatch(r"\W*https?://\S+", line)
    ]
    assert long == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_paragraph_is_too_long(page: Path) -> None:
    long = [f"{page.name}:{lines[0][0]}" for lines in paragraphs(page) if len(lines) > MOST_LINES]
    assert long == []
