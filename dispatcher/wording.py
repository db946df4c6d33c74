"""Write tables, fields, ages, plurals and anybody's texts, made harmless, as commands show them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from dispatcher import text
from dispatcher.text import cut

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def printable(value: object) -> str:
    """Return anybody's value as a text of one line: what could steer a terminal is written as an escape."""
    return text.printable(str(value))


def one_line(text: str, limit: int = 600) -> str:
    """Return anybody's text for a sentence: printable, white space as blanks, cut to `limit` characters."""
    line = " ".join(text.split()) if any(char in text for char in "\n\r\t") else text
    return cut(printable(line[: limit + 1]), limit)


def last_lines(text: str, limit: int) -> list[str]:
    """Return the lines of anybody's text that say something, the last `limit` of them."""
    lines = [one_line(line.rstrip(), 200) for line in text.splitlines() if line.strip()]
    return lines[-limit:]


def table(rows: Iterable[Sequence[object]]) -> str:
    """Return a line for each row, the headings first, in columns as wide as they need to be."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in shown]
    return "\n".join(line.rstrip() for line in lines)


def fields(values: Mapping[str, Any]) -> str:
    """Return a line for each value that is there, with its name in front."""
    texts = {
        name: json.dumps(value) if isinstance(value, (dict, list)) else value
        for name, value in values.items()
        if value is not None
    }
    return "\n".join(f"{name + ':':18}{printable(text)}" for name, text in texts.items())


def shown(values: Mapping[str, Any], *, as_json: bool) -> str:
    """Return the values of one thing as a JSON object or as lines; times have milliseconds."""
    plain = {
        name: value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else value
        for name, value in values.items()
    }
    return json.dumps(plain, indent=2) if as_json else fields(plain)


def many(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def age(seconds: float) -> str:
    """Return a duration for a table: the largest unit of which there are two."""
    for unit, length in (("d", _DAY), ("h", _HOUR), ("m", _MINUTE)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def duration(seconds: float) -> str:
    """Return a duration in words: seconds below 100 s, minutes below 100 minutes, then hours, then days."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * _MINUTE:
        return many(round(seconds / _MINUTE), "minute")
    if seconds < 2 * _DAY:
        hours, minutes = divmod(round(seconds / _MINUTE), 60)
        return many(hours, "hour") + (f" {many(minutes, 'minute')}" if minutes else "")
    return many(round(seconds / _DAY), "day")


def ago(now: datetime, moment: datetime) -> str:
    """Return how long ago a moment was; one that is to come is `in` a while."""
    seconds = (now - moment).total_seconds()
    if seconds < -0.5:
        return f"in {duration(-seconds)}"
    return "just now" if seconds < 1 else f"{duration(seconds)} ago"


def clock(now: datetime, moment: datetime) -> str:
    """Return the time of day in UTC, as the containers' logs have it, with the date of another day."""
    moment, now = moment.astimezone(timezone.utc), now.astimezone(timezone.utc)
    return f"{moment:%H:%M:%S}" if moment.date() == now.date() else f"{moment:%Y-%m-%d %H:%M}"
