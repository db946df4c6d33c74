"""Read ids as other languages write them: dispatcher.tasks asks here, for each payload.

An id is taken if there is one way only to read it: an integer, a whole number as JavaScript's JSON has it, or
the same digits as a text. Of anything else it is at most said which lab is meant, so that it can be told.
"""

from __future__ import annotations

import re
from typing import TypeGuard

MAX_ID = 2**63 - 1  # PostgreSQL bigint
#: Up to here floating point numbers hold each integer.
_EXACT = 2**53
_DIGITS = re.compile("[1-9][0-9]{0,18}")
#: Longest text that may mean an id, in characters.
_LONGEST = 40


def is_id(value: object) -> TypeGuard[int]:
    return type(value) is int and 1 <= value <= MAX_ID


def read_id(value: object) -> int | None:
    """Return the id that a value is; None for what is none, or could be read in another way."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and 1 <= value <= _EXACT else None
    if isinstance(value, str):
        number = int(value) if _DIGITS.fullmatch(value) else 0
        return number if is_id(number) else None
    return value if is_id(value) else None


def meant_id(value: object) -> int | None:
    """Return the id that a value means at least to a person, such as " 7", "+7", "007", "7.0" or "7e0"."""
    found = read_id(value)
    if found is not None or not isinstance(value, str) or len(value) > _LONGEST:
        return found
    from decimal import Decimal, InvalidOperation  # which nobody needs who writes ids as they are

    try:
        number = Decimal(value.strip())
    except InvalidOperation:
        return None
    if not number.is_finite() or not 1 <= number <= MAX_ID or number != number.to_integral_value():
        return None
    return int(number)
