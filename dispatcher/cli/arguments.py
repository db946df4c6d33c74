"""Check the arguments of a command line; an error says what is not allowed, and what is."""

from __future__ import annotations

import argparse
from datetime import datetime

from dispatcher.ids import MAX_ID

_MAX_SECONDS = 86_400


def natural(text: str) -> int:
    """Return an integer from 0."""
    return _integer(text, 0)


def positive(text: str) -> int:
    return _integer(text, 1)


def row_id(text: str) -> int:
    return _integer(text, 1, MAX_ID)


def seconds(text: str) -> float:
    """Return seconds, from 0 to a day."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= _MAX_SECONDS:
        raise _not_allowed(text, f"a number of seconds from 0 to {_MAX_SECONDS}")
    return number


def moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.utcoffset() is None:
        raise _not_allowed(text, "a time with its offset, such as 2026-03-01T11:00:00Z")
    return found


def _integer(text: str, least: int, most: int | None = None) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_ID)) else -1
    if number < least or (most is not None and number > most):
        raise _not_allowed(text, f"an integer from {least}" + (f" to {most}" if most is not None else ""))
    return number


def _not_allowed(text: str, allowed: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text!r} is not allowed; it must be {allowed}")
