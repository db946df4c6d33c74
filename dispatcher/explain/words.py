"""Moments, durations and foreign texts as an operator reads them."""

from __future__ import annotations

from datetime import datetime, timezone

from dispatcher import redaction

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def duration(seconds: float) -> str:
    """Return a duration in words: seconds below 100 s, minutes below 100 minutes, then hours, then days."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * _MINUTE:
        return _count(round(seconds / _MINUTE), "minute")
    if seconds < 2 * _DAY:
        hours, minutes = divmod(round(seconds / _MINUTE), 60)
        return _count(hours, "hour") + (f" {_count(minutes, 'minute')}" if minutes else "")
    return _count(round(seconds / _DAY), "day")


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


def printable(text: str, limit: int = 600) -> str:
    """Return one line of a foreign text: what could steer a terminal is written as an escape."""
    line = " ".join(text.split()) if any(char in text for char in "\n\r\t") else text
    shown = redaction.printable(line[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def printable_lines(text: str, limit: int) -> list[str]:
    """Return the lines of a foreign text that say something, the last `limit` of them."""
    lines = [printable(line.rstrip(), 200) for line in text.splitlines() if line.strip()]
    return lines[-limit:]


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"
