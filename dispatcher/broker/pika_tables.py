"""Let pika read header tables that it gives up on, and the whole connection with them.

RabbitMQ keeps whatever has the form of a table: a time in the year 10^11, or tables nested a thousand deep
(a table of 128 KiB can be nested 18,000 deep). The containers that met such a message lost their
connection until the queue's delivery limit moved it to the dead-letter queue, where people must see it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika.data

_LENGTH = struct.Struct(">I")


class Unreadable(str):
    """What stands for a value that cannot be read, and so not be written again."""

    __slots__ = ()


@contextmanager
def tolerant_tables() -> Iterator[None]:
    """Read what pika cannot as a text that says so, for every connection of this process meanwhile."""
    original = pika.data.decode_value

    def decode_value(encoded: bytes, offset: int) -> tuple[Any, int]:
        try:
            value, end = original(encoded, offset)
            return value, int(end)
        except (OverflowError, ValueError, OSError):
            if encoded[offset : offset + 1] != b"T":
                raise
            return Unreadable("a time that cannot be read"), offset + 9
        except RecursionError:
            if encoded[offset : offset + 1] not in (b"F", b"A"):
                raise
            (length,) = _LENGTH.unpack_from(encoded, offset + 1)
            return Unreadable("nested too deep to be read"), offset + 1 + _LENGTH.size + length

    pika.data.decode_value = decode_value
    try:
        yield
    finally:
        pika.data.decode_value = original
