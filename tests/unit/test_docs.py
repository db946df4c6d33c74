"""Pages lead somewhere."""

from __future__ import annotations

import re
import shlex
from itertools import product
from pathlib import Path

import pytest

from dispatcher.__main__ import make_parser

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_exists(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def commands_of(page: str) -> set[str]:
    """Return the commands a page names, each alternative of `list|show` for itself."""
    found = set()
    for named in re.findall(r"`autolabs ([^`]+)`", page):
        command = re.sub(r"[\[\]]", "", named).replace("ID", "1").replace("LAB", "17")
        found |= {" ".join(words) for words in product(*(word.split("|") for word in command.split()))}
    return found


@pytest.mark.parametrize("command", sorted({c for page in PAGES for c in commands_of(page.read_text())}))
def test_every_command_of_a_page_is_one(command: str) -> None:
    words = [word for word in shlex.split(command) if word != "…"]
    if len(words) <= 2 or "…" in command:  # named, without all that it needs
        with pytest.raises(SystemExit) as ended:
            make_parser().parse_args([*words, "-h"])
        assert ended.value.code == 0
    else:
        assert make_parser().parse_args(words).run
