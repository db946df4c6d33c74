from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime, timezone

import pytest

from dispatcher.cli.arguments import moment, natural, positive, row_id, seconds

Type = Callable[[str], object]


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (natural, "0", 0),
        (positive, "1", 1),
        (row_id, "9223372036854775807", 2**63 - 1),
        (seconds, "1.5", 1.5),
        (moment, "2026-03-01T11:00:00Z", datetime(2026, 3, 1, 11, tzinfo=timezone.utc)),
    ],
)
def test_what_is_allowed_is_read(read: Type, text: str, value: object) -> None:
    assert read(text) == value


WRONG: dict[Type, tuple[list[str], str]] = {
    natural: (["-1", "abc", "1.5", "", "\u0663", "9" * 5000], "an integer from 0"),
    positive: (["0", "-1", "abc"], "an integer from 1"),
    row_id: (["0", "abc", "9223372036854775808"], "an integer from 1 to 9223372036854775807"),
    seconds: (["nan", "inf", "-1", "86401", "abc", ""], "a number of seconds from 0 to 86400"),
    moment: (["2026-03-01T11:00:00", "abc", ""], "a time with its offset"),
}


@pytest.mark.parametrize(
    ("read", "text", "allowed"),
    [(read, text, allowed) for read, (texts, allowed) in WRONG.items() for text in texts],
)
def test_what_is_not_allowed_is_told_with_what_is(read: Type, text: str, allowed: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"is not allowed; it must be {allowed}"):
        read(text)
