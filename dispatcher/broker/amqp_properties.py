"""Write the basic properties and header tables of AMQP 0-9-1.

pika's writer takes three times as long, for the largest part of a published message, and knows no floats.
Field types are RabbitMQ's: https://www.rabbitmq.com/amqp-0-9-1-errata#section_3.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

_LENGTH = struct.Struct(">I").pack
_INT32 = struct.Struct(">ci").pack
_INT64 = struct.Struct(">cq").pack
_DOUBLE = struct.Struct(">cd").pack
_TIMESTAMP = struct.Struct(">cQ").pack
_DECIMAL = struct.Struct(">cBi").pack
#: Errors of the writers below for a value that AMQP does not have.
_UNWRITABLE = (struct.error, ValueError, TypeError, ArithmeticError, AttributeError, RecursionError)


def encode_properties(properties: Mapping[str, Any]) -> bytes:
    """Return flags and values of a content header; keys as in pika.BasicProperties.

    Raises ValueError for a key or a value that AMQP does not have, without showing the value.
    """
    flags, parts = 0, []
    for name, bit, write in _FIELDS:
        value = properties.get(name)
        if value is not None:
            flags |= bit
            try:
                parts.append(write(value))
            except _UNWRITABLE as exc:
                raise ValueError(f"property {name} cannot be written as AMQP: {exc}"[:300]) from exc
    if unknown := properties.keys() - _NAMES:
        raise ValueError(f"properties {', '.join(sorted(unknown))} are unknown")
    return flags.to_bytes(2, "big") + b"".join(parts)


def _octet(value: int) -> bytes:
    return value.to_bytes(1, "big")


def _seconds(value: int) -> bytes:
    return value.to_bytes(8, "big")


def _short_text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    if len(data) > 255:
        raise ValueError(f"a short text has {len(data)} bytes; at most 255 are allowed")
    return bytes((len(data),)) + data


#: Header names as they are written; every message has the same twenty.
_key = lru_cache(maxsize=256)(_short_text)


def _table(table: Mapping[str, Any]) -> bytes:
    data = b"".join([part for key, value in table.items() for part in (_key(key), _field(value))])
    return _LENGTH(len(data)) + data


def _field(value: Any) -> bytes:
    writer = _WRITERS.get(type(value)) or next(
        # pika gives a 64-bit integer as a class of its own
        (write for kind, write in _WRITERS.items() if isinstance(value, kind)),
        None,
    )
    if writer is None:
        raise TypeError(f"a {type(value).__name__} is not a field of an AMQP table")
    return writer(value)


def _text_field(value: str) -> bytes:
    data = value.encode("utf-8", "surrogateescape")
    return b"S" + _LENGTH(len(data)) + data


def _integer_field(value: int) -> bytes:
    return _INT32(b"I", value) if -(2**31) <= value < 2**31 else _INT64(b"l", value)


def _decimal_field(value: Decimal) -> bytes:
    exponent = value.normalize().as_tuple().exponent
    scale = max(0, -exponent) if isinstance(exponent, int) else 256
    return _DECIMAL(b"D", scale, int(value.scaleb(scale)))


def _list_field(value: list[Any]) -> bytes:
    data = b"".join(map(_field, value))
    return b"A" + _LENGTH(len(data)) + data


_WRITERS: dict[type, Callable[[Any], bytes]] = {
    str: _text_field,
    type(None): lambda _: b"V",
    bool: lambda value: b"t\x01" if value else b"t\x00",
    int: _integer_field,
    float: lambda value: _DOUBLE(b"d", value),
    list: _list_field,
    dict: lambda value: b"F" + _table(value),
    bytes: lambda value: b"x" + _LENGTH(len(value)) + value,
    datetime: lambda value: _TIMESTAMP(b"T", int(value.timestamp())),
    Decimal: _decimal_field,
}

#: Name, flag and writer, in the order of the wire. Celery and we use the first eight.
_FIELDS: tuple[tuple[str, int, Callable[[Any], bytes]], ...] = (
    ("content_type", 1 << 15, _short_text),
    ("content_encoding", 1 << 14, _short_text),
    ("headers", 1 << 13, _table),
    ("delivery_mode", 1 << 12, _octet),
    ("priority", 1 << 11, _octet),
    ("correlation_id", 1 << 10, _short_text),
    ("reply_to", 1 << 9, _short_text),
    ("expiration", 1 << 8, _short_text),
    ("message_id", 1 << 7, _short_text),
    ("timestamp", 1 << 6, _seconds),
    ("type", 1 << 5, _short_text),
    ("user_id", 1 << 4, _short_text),
    ("app_id", 1 << 3, _short_text),
    ("cluster_id", 1 << 2, _short_text),
)
_NAMES = frozenset(name for name, _, _ in _FIELDS)
