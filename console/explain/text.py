"""An explanation as a page for a terminal, and with its facts as an object for programs."""

from __future__ import annotations

import enum
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Any

from console.explain.explanation import Actor, Explanation
from console.explain.facts import LabFacts
from dispatcher.wording import ago, clock

WIDTH = 110
_LABEL = 15
_ACTORS = {
    Actor.TEACHER: "the teacher",
    Actor.ADMINISTRATOR: "the administrator",
    Actor.BACKEND: "the backend (whoever writes the labs' rows and publishes their tasks)",
    Actor.NOBODY: "nobody",
}


def make_page(facts: LabFacts, found: Explanation) -> str:
    """Return the page; times are UTC."""
    lines = [found.headline, ""]
    lines += _section("what happened", _timeline(facts, found))
    if found.why:
        marks = ", ".join(mark for mark in (found.why.category, found.why.cause) if mark)
        lines += _section("why", [found.why.sentence, *([f"[{marks}]"] if marks else [])])
    lines += _section("seen last", found.seen)
    lines += _section("who must act", [_ACTORS[found.who]])
    lines += _section("told", found.told)
    lines += _section("next", [_sentence(found.next)])
    lines += _section("run", found.commands, wrap=False)
    return "\n".join(lines)


def make_object(facts: LabFacts, found: Explanation) -> dict[str, Any]:
    """Return facts and findings with stable keys; times are ISO 8601."""
    plain = _plain({"facts": asdict(facts), "findings": asdict(found)})
    return dict(plain)


def _timeline(facts: LabFacts, found: Explanation) -> Iterator[str]:
    for entry in found.timeline:
        if entry.at is None:
            yield f".. {entry.text}"
        else:
            yield f"{clock(facts.now, entry.at)} ({ago(facts.now, entry.at)})  {entry.text}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith("?") else ".")


def _section(label: str, texts: Iterable[str], *, wrap: bool = True) -> Iterator[str]:
    """Return the lines of a section, the label in front of the first; nothing for no texts."""
    head = f"{label}:"
    for text in texts:
        parts = _wrap(text) if wrap else [text]
        for part in parts or [""]:
            yield f"{head:{_LABEL}}{part}".rstrip()
            head = ""


def _wrap(text: str) -> list[str]:
    # A name that is broken cannot be copied; `one_line` bounds it.
    return textwrap.wrap(
        text, WIDTH - _LABEL, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
