"""Put dead letters into the forms in which people read them, programs take them and PostgreSQL keeps them.

console.dlq.commands and console.dlq.run print them, console.dlq.actions stores them.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from console.dlq.letters import SHOWN_KEY, DeadLetter, read_task
from dispatcher.broker.topology import DEAD_LETTER_QUEUE
from dispatcher.text import cut, scrubbed, scrubbed_values
from dispatcher.wording import age, many, printable
from dispatcher.wording import table as make_table
from jobs.errors import storable

if TYPE_CHECKING:
    from console.dlq.queue import Browsed

#: Longest reason in a list, in characters; `show` has all of it.
_REASON = 100
_HEADINGS = ("KEY", "TASK ID", "TASK", "LAB", "TRIES", "AGE", "CAUSE", "REASON")

#: Tables within tables that are kept; deeper ones are left out.
MAX_DEPTH = 20
#: Bytes that `show` has of a body that is no task.
_MAX_BODY = 2000
#: Fields that name a message to the commands, and are shown as they are.
_NAMES = ("key", "task_id")

#: Cause and category -> how many messages.
Causes = Counter[tuple[str, str | None]]


def table(letters: Iterable[DeadLetter]) -> str:
    now = datetime.now(timezone.utc)
    return make_table([_HEADINGS, *(_row(letter, now) for letter in letters)])


def summary(causes: Causes, total: int) -> str:
    """Return how many messages there are of each cause, the most frequent first."""
    matching = sum(causes.values())
    match = f", {matching} match" if matching != total else ""
    lines = [f"{many(total, 'message')} in {DEAD_LETTER_QUEUE}{match}"]
    lines += [
        f"{number:7}  {safe(cause)}" + (f" ({safe(category)})" if category else "")
        for (cause, category), number in causes.most_common()
    ]
    return "\n".join(lines)


def name(letter: DeadLetter) -> str:
    return in_words(letter.key, letter.task_id, letter.task_name, letter.lab_instance_id)


def in_words(key: str, task_id: str | None, task_name: str | None, lab_instance_id: int | None) -> str:
    lab = "" if lab_instance_id is None else f" of lab {lab_instance_id}"
    return printable(f"{key[:SHOWN_KEY]} (task {task_id or '-'}, {scrubbed(task_name or 'no task')}{lab})")


def not_there(wanted_id: str) -> str:
    return f"nothing in {DEAD_LETTER_QUEUE} is {printable(wanted_id)}"


def safe(text: str) -> str:
    """Return anybody's text in one line that a terminal can show, without what looks like a secret."""
    return printable(scrubbed(text))


def as_json(letters: Iterable[DeadLetter], causes: Causes, total: int) -> str:
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


def details(found: Browsed) -> dict[str, Any]:
    """Return what `show` says of a message: all that the list has, properties, headers and arguments."""
    task, _ = read_task(found.body, found.properties)
    content: dict[str, Any] = {"body": found.body[:_MAX_BODY]}
    if task is not None:
        content = {"args": task.args, "kwargs": task.kwargs}
    sent = found.properties
    return {
        **fields(found.letter),
        **{key: scrubbed_values(plain_json(value)) for key, value in content.items()},
        "content_type": plain_text(sent.content_type),
        "content_encoding": plain_text(sent.content_encoding),
        "headers": scrubbed_values(plain_json(sent.headers or {})),
    }


def plain_text(value: object) -> str | None:
    """Return a text without NUL and lone surrogates, which PostgreSQL refuses; None stays None."""
    if value is None:
        return None
    return storable(value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value))


def plain_json(value: Any, depth: int = 0) -> Any:
    """Return a copy that a jsonb column takes; what JSON does not have becomes a text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    if depth >= MAX_DEPTH and isinstance(value, (Mapping, list)):
        return "nested too deep to be kept"
    if isinstance(value, Mapping):
        return {str(plain_text(key)): plain_json(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain_json(inner, depth + 1) for inner in value]
    return plain_text(value)


def _shown(key: str, value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return scrubbed(value) if isinstance(value, str) and key not in _NAMES else value


def _row(letter: DeadLetter, now: datetime) -> tuple[str, ...]:
    return (
        letter.key[:SHOWN_KEY],
        letter.task_id or "-",
        scrubbed(letter.task_name or "-"),
        "" if letter.lab_instance_id is None else str(letter.lab_instance_id),
        "" if letter.attempts is None else str(letter.attempts),
        "" if letter.died_at is None else age((now - letter.died_at).total_seconds()),
        scrubbed(letter.cause),
        cut(scrubbed(letter.reason), _REASON),
    )
