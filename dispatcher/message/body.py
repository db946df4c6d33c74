"""Read bodies that Celery wrote: undo its compressions, and kombu's wrappers for what JSON cannot say.

Names and forms are those of kombu/compression.py and kombu/utils/json.py; envelope.decode asks here.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import zlib
from collections.abc import Callable
from typing import Any

from dispatcher.errors import MalformedMessage

#: Longest body in bytes. A task has a few hundred; the limit keeps a hostile one out of a 256 MiB container.
MAX_BODY_BYTES = 1024 * 1024


def decompress(body: bytes, compression: object) -> bytes:
    """Return the plain body. Raises MalformedMessage, also for more than MAX_BODY_BYTES."""
    if compression is None:
        return body
    opener = _OPENERS.get(str(compression))
    if opener is None:
        allowed = ", ".join(_OPENERS)
        raise MalformedMessage(
            f"compression {str(compression)[:60]!r} is not supported; allowed are {allowed}"
        )
    try:
        plain = opener(body)
    except (zlib.error, OSError, ValueError, EOFError) as exc:
        raise MalformedMessage(f"body cannot be decompressed: {exc}") from exc
    if len(plain) > MAX_BODY_BYTES:
        raise MalformedMessage(f"decompressed body has more than {MAX_BODY_BYTES} bytes")
    return plain


# kombu's "gzip" and "zlib" are both a bare zlib stream. One byte over the limit is enough to notice
# a bomb without unpacking it.
_OPENERS: dict[str, Callable[[bytes], bytes]] = {
    "application/x-gzip": lambda data: zlib.decompressobj().decompress(data, MAX_BODY_BYTES + 1),
    "application/x-bz2": lambda data: bz2.BZ2Decompressor().decompress(data, MAX_BODY_BYTES + 1),
}


def unwrap(value: dict[str, Any]) -> Any:
    """Return a plain JSON value for a wrapped one; a hook for json.loads. Raises ValueError."""
    if value.keys() != {"__type__", "__value__"}:
        return value
    kind, inner = value["__type__"], value["__value__"]
    if kind in ("datetime", "date", "time", "decimal", "bytes") and isinstance(inner, str):
        return inner
    if kind == "uuid" and isinstance(inner, dict) and isinstance(inner.get("hex"), str):
        return inner["hex"]
    if kind == "base64" and isinstance(inner, str):
        try:
            return base64.b64decode(inner, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as exc:
            raise ValueError("a base64 value does not hold text") from exc
    raise ValueError(f"unknown wrapped type {str(kind)[:40]!r}")
