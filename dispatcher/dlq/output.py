"""How `autolabs dlq` shows messages: for people in lines, for programs as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from dispatcher.dlq.letters import SHOWN_KEY, DeadLetter
from dispatcher.plain import printable
from dispatcher.topology import DEAD_LETTER_QUEUE

#: Characters of the reason in a list; `show` has all of it.
_REASON = 100
_HEADINGS = ("KEY", "TASK ID", "TASK", "LAB", "TRIES", "AGE", "CAUSE", "REASON")

#: Cause and category -> how many messages.
Causes = Counter[tuple[str, str | None]]


def table(letters: Iterable[DeadLetter]) -> str:
    """Return a line for each message."""
    now = datetime.now(timezone.utc)
    rows = [_HEADINGS, *(_row(letter, now) for letter in letters)]
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in shown]
    return "\n".join(line.rstrip() for line in lines)


def summary(causes: Causes, total: int) -> str:
    """Return how many messages there are of each cause, the most frequent first."""
    matching = sum(causes.values())
    lines = [f"{count(total)} in {DEAD_LETTER_QUEUE}" + (f", {matching} match" if matching != total else "")]
    lines += [
        f"{number:7}  {printable(cause)}" + (f" ({printable(category)})" if category else "")
        for (cause, category), number in causes.most_common()
    ]
    return "\n".join(lines)


def count(number: int) -> str:
    """Return a number of messages in words."""
    return f"{number} message" + ("" if number == 1 else "s")


def name(letter: DeadLetter) -> str:
    """Return one message in a few words."""
    lab = "" if letter.lab_instance_id is None else f" of lab {letter.lab_instance_id}"
    return printable(
        f"{letter.key[:SHOWN_KEY]} (task {letter.task_id or '-'}, {letter.task_name or 'no task'}{lab})"
    )


def as_json(letters: Iterable[DeadLetter], causes: Causes, total: int) -> str:
    """Return messages and summary as a JSON object."""
    content = {
        "total": total,
        "by_cause": [
            {"cause": cause, "category": category, "count": number}
            for (cause, category), number in causes.most_common()
        ],
        "messages": [fields(letter) for letter in letters],
    }
    return json.dumps(content, indent=2)


def fields(letter: DeadLetter) -> dict[str, Any]:
    """Return everything that is known of a message, in types of JSON."""
    return {
        key: value.isoformat() if isinstance(value, datetime) else value
        for key, value in asdict(letter).items()
    }


def lines(values: Mapping[str, Any]) -> str:
    """Return a line per value that is there."""
    shown = []
    for key, value in values.items():
        if value is not None:
            text = json.dumps(value) if isinstance(value, (dict, list)) else value
            shown.append(f"{key + ':':18}{printable(text)}")
    return "\n".join(shown)


def _row(letter: DeadLetter, now: datetime) -> tuple[str, ...]:
    age = "" if letter.died_at is None else _age((now - letter.died_at).total_seconds())
    reason = letter.reason if len(letter.reason) <= _REASON else letter.reason[: _REASON - 3] + "..."
    return (
        letter.key[:SHOWN_KEY],
        letter.task_id or "-",
        letter.task_name or "-",
        "" if letter.lab_instance_id is None else str(letter.lab_instance_id),
        "" if letter.attempts is None else str(letter.attempts),
        age,
        letter.cause,
        reason,
    )


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"
