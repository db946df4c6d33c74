from __future__ import annotations

from datetime import datetime, timezone

import pytest

from dispatcher.stored_times import EARLIEST, LATEST, is_odd, read_time


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-infinity", EARLIEST),
        ("4713-01-01 00:00:00+00 BC", EARLIEST),
        ("0044-03-15 00:00:00+00 BC", EARLIEST),
        ("0001-01-01 00:00:00+00", EARLIEST),
        ("0001-01-01 00:00:00+14", EARLIEST),
        ("infinity", LATEST),
        ("9999-12-31 23:59:59.999999-12", LATEST),
        ("10000-01-01 00:00:00+00", LATEST),
        ("294276-12-31 23:59:59.999999+00", LATEST),
        (None, None),
        ("2026-01-02 03:04:05.000006+02", datetime(2026, 1, 2, 1, 4, 5, 6, tzinfo=timezone.utc)),
        ("2026-01-02 03:04:05.5+00", datetime(2026, 1, 2, 3, 4, 5, 500_000, tzinfo=timezone.utc)),
        ("1850-01-01 00:00:00+00:53:28", datetime(1849, 12, 31, 23, 6, 32, tzinfo=timezone.utc)),
    ],
)
def test_every_time_of_postgresql_is_read(text: str | None, expected: datetime | None) -> None:
    assert read_time(text, None) == expected
    assert is_odd(read_time(text, None)) == (expected in (EARLIEST, LATEST))
