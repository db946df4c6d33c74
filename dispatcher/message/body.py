"""Read bodies that Celery wrote: undo its compressions, and kombu's wrappers for what JSON cannot say.

Names and forms are those of kombu/compression.py and kombu/utils/json.py; envelope.decode asks here.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import zlib
from collections.abc import Callable
from encodings import normalize_encoding
from encodings.aliases import aliases
from typing import Any

from dispatcher.errors import MalformedMessage

#: Longest body in bytes. A task has a few hundred; the limit keeps a hostile one out of a 256 MiB container.
MAX_BODY_BYTES = 1024 * 1024

#: Codecs, by Python's names, that may be named for a body of JSON. kombu reads it as UTF-8 whatever is named.
_CODECS = {"utf_8", "utf_8_sig", "ascii", "latin_1", "cp1252", "binary", "8bit", "ascii_8bit"}
_ENCODINGS = "utf-8, us-ascii, iso-8859-1, windows-1252 and binary, in any case and spelling"


def check_form(content_type: object, content_encoding: object) -> None:
    """Raise MalformedMessage unless the body is called JSON, in an encoding that JSON may have."""
    media_type = str(content_type).partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise MalformedMessage(f"content type {content_type!r:.80} is refused; only application/json is read")
    if content_encoding is None or content_encoding == "":
        return
    if not isinstance(content_encoding, str) or _codec(content_encoding) not in _CODECS:
        raise MalformedMessage(
            f"content encoding {content_encoding!r:.80} is refused; allowed are {_ENCODINGS}"
        )


def _codec(name: str) -> str:
    # Not codecs.lookup, which would import whatever module a message names.
    plain = normalize_encoding(name.strip()).lower()
    return aliases.get(plain, plain)


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
