"""The files of an image's build context, as .dockerignore leaves them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path


def files_of(folder: Path) -> list[tuple[str, Path]]:
    """Return (path in the context, file) for everything that .dockerignore does not leave out."""
    ignore = folder / ".dockerignore"
    rules = parse(ignore.read_text().splitlines()) if ignore.exists() else []
    found = []
    for parent, folders, names in os.walk(folder):
        where = Path(parent).relative_to(folder)
        # An exception below an ignored folder needs the walk; without exceptions it is saved.
        folders[:] = [f for f in folders if f != ".git" and not _prune(rules, (where / f))]
        for name in names:
            path = (where / name).as_posix()
            if not is_ignored(rules, path) and name not in (".dockerignore",):
                found.append((path, Path(parent) / name))
    return sorted(found)


Rule = tuple[re.Pattern[str], bool]


def parse(lines: Iterable[str]) -> list[Rule]:
    """Parse .dockerignore lines into (pattern, keeps) pairs; the last that matches decides."""
    rules = []
    for raw in lines:
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        keeps = line.startswith("!")
        pattern = line.removeprefix("!").strip().strip("/")
        rules.append((re.compile(_regex(pattern) + r"(?:/.*)?\Z"), keeps))
    return rules


def is_ignored(rules: list[Rule], path: str) -> bool:
    """Whether the last rule that matches leaves the path out."""
    ignored = False
    for pattern, keeps in rules:
        if pattern.match(path):
            ignored = not keeps
    return ignored


def _prune(rules: list[Rule], folder: Path) -> bool:
    return is_ignored(rules, folder.as_posix()) and not any(keeps for _, keeps in rules)


def _regex(pattern: str) -> str:
    out, i = "", 0
    while i < len(pattern):
        if pattern.startswith("**/", i):
            out, i = out + r"(?:.*/)?", i + 3
        elif pattern.startswith("**", i):
            out, i = out + r".*", i + 2
        elif pattern[i] == "*":
            out, i = out + r"[^/]*", i + 1
        elif pattern[i] == "?":
            out, i = out + r"[^/]", i + 1
        else:
            out, i = out + re.escape(pattern[i]), i + 1
    return out
