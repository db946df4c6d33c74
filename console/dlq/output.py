"""How `autolabs dlq` shows messages: for people in lines, for programs as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from console.dlq.letters import SHOWN_KEY, DeadLetter
from dispatcher.redaction import scrubbed
from dispatcher.terminal import age, many, printable
from dispatcher.terminal import table as make_table
from dispatcher.texts import cut
from dispatcher.topology import DEAD_LETTER_QUEUE

#: Characters of the reason in a list; `show` has all of it.
_REASON = 100
_HEADINGS = ("KEY", "TASK ID", "TASK", "LAB", "TRIES", "AGE", "CAUSE", "REASON")

#: What names a message to the commands is shown as it is.
_NAMES = ("key", "task_id")

#: Cause and category -> how many messages.
Causes = Counter[tuple[str, str | None]]


def table(letters: Iterable[DeadLetter]) -> str:
    """Return a line for each message."""
    now = datetime.now(timezone.utc)
    return make_table([_HEADINGS, *(_row(letter, now) for letter in letters)])


def summary(causes: Causes, total: int) -> str:
    """Return how many messages there are of each cause, the most frequent first."""
    matching = sum(causes.values())
    lines = [
        f"{many(total, 'message')} in {DEAD_LETTER_QUEUE}"
        + (f", {matching} match" if matching != total else "")
    ]
    lines += [
        f"{number:7}  {safe(cause)}" + (f" ({safe(category)})" if category else "")
        for (cause, category), number in causes.most_common()
    ]
    return "\n".join(lines)


def name(letter: DeadLetter) -> str:
    """Return one message in a few words."""
    lab = "" if letter.lab_instance_id is None else f" of lab {letter.lab_instance_id}"
    task = scrubbed(letter.task_name or "no task")
    return printable(f"{letter.key[:SHOWN_KEY]} (task {letter.task_id or '-'}, {task}{lab})")


def safe(text: str) -> str:
    """Return anybody's text in one line that a terminal can show, without what looks like a secret."""
    return printable(scrubbed(text))


def as_json(letters: Iterable[DeadLetter], causes: Causes, total: int) -> str:
    """Return messages and summary as a JSON object."""
    content = {
        "total": total,
        "by_cause": [
            {"cause": scrubbed(cause), "category": category and scrubbed(category), "count": number}
            for (cause, category), number in causes.most_common()
        ],
        "messages": [fields(letter) for letter in letters],
    }
    return json.dumps(content, indent=2)


def fields(letter: DeadLetter) -> dict[str, Any]:
    """Return everything that is known of a message, in types of JSON, without what looks like a secret."""
    return {key: _shown(key, value) for key, value in asdict(letter).items()}


def _shown(key: str, value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return scrubbed(value) if isinstance(value, str) and key not in _NAMES else value


def _row(letter: DeadLetter, now: datetime) -> tuple[str, ...]:
    dead = "" if letter.died_at is None else age((now - letter.died_at).total_seconds())
    reason = cut(scrubbed(letter.reason), _REASON)
    return (
        letter.key[:SHOWN_KEY],
        letter.task_id or "-",
        scrubbed(letter.task_name or "-"),
        "" if letter.lab_instance_id is None else str(letter.lab_instance_id),
        "" if letter.attempts is None else str(letter.attempts),
        dead,
        scrubbed(letter.cause),
        reason,
    )
