"""Undo kombu's wrappers for what JSON cannot say (kombu/utils/json.py)."""

from __future__ import annotations

import base64
import binascii
from typing import Any


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
