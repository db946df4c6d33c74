"""Pages lead somewhere."""

from __future__ import annotations

import re
import shlex
from itertools import product
from pathlib import Path

import pytest

from console.commands import COMMANDS
from dispatcher.cli.program import make_parser

ROOT = Path(__file__).parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FOLDERS = ("dispatcher", "jobs", "cronjobs", "keda", "console", "deploy", "tests")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.*"))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> list[str]:
    """Return the lines of a page without its fenced code."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE).splitlines()


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = (re.sub(r"\]\([^)]*\)", "]", line) for line in prose(page) if line.startswith("#"))
    words = (re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()) for heading in headings)
    return {word.replace(" ", "-") for word in words}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_and_anchor_exists(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", "\n".join(prose(page))):
        to = page.parent / target if target else page
        assert to.exists(), target
        assert not anchor or anchor in anchors_of(to), f"{target}#{anchor}"


def test_every_page_that_the_code_names_exists() -> None:
    for source in (path for path in SOURCES if path.suffix in {".py", ".yaml", ".sh"}):
        for page in re.findall(r"(?<![/\w])docs/[\w/-]+\.md", source.read_text()):
            if source.name != "test_local_cache.py":  # whose paths are examples
                assert (ROOT / page).exists(), f"{source}: {page}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_no_two_headings_have_one_anchor(page: Path) -> None:
    assert len(anchors_of(page)) == sum(line.startswith("#") for line in prose(page))


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
            make_parser(COMMANDS).parse_args([*words, "-h"])
        assert ended.value.code == 0
    else:
        assert make_parser(COMMANDS).parse_args(words).run
