"""Read a timestamptz that no datetime can hold as the nearest one that we take: before year 1, infinity.

psycopg2 raises ValueError for the whole result instead, so that one odd row would hide all others. Who opens
a connection calls `bear_odd_times` for it.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psycopg2.extensions import connection

#: The earliest and the latest time that is read; both leave room for sums with ages and offsets.
EARLIEST = datetime(2, 1, 1, tzinfo=timezone.utc)
LATEST = datetime(9999, 1, 1, tzinfo=timezone.utc)
#: Type of timestamptz in PostgreSQL (pg_type.dat).
_TIMESTAMPTZ = 1184


def bear_odd_times(opened: connection) -> None:
    """Have a connection read each time as a datetime from EARLIEST to LATEST."""
    from psycopg2.extensions import new_type, register_type

    register_type(new_type((_TIMESTAMPTZ,), "BEARABLE_TIME", read_time), opened)


def read_time(text: str | bytes | None, _cursor: Any) -> datetime | None:
    """Return a time as PostgreSQL writes it, in its ISO style."""
    if text is None:
        return None
    text = text.decode() if isinstance(text, bytes) else text
    if text == "-infinity" or text.endswith("BC"):
        return EARLIEST
    # A year of five digits, or infinity.
    if text[4:5] != "-":
        return LATEST
    found = datetime.fromisoformat(text)
    return min(max(found, EARLIEST), LATEST)


def is_odd(moment: datetime | None) -> bool:
    """Tell whether a time of a row is none that anything can have happened at."""
    return moment is not None and (moment <= EARLIEST or moment >= LATEST)
