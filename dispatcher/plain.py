"""Values of anybody's messages in a form that PostgreSQL stores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: Tables within tables; deeper ones are left out.
MAX_DEPTH = 20


def plain_text(value: object) -> str | None:
    """Return a text without NUL and lone surrogates, which PostgreSQL refuses; None stays None."""
    if value is None:
        return None
    text = value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def plain_json(value: Any, depth: int = 0) -> Any:
    """Return a copy that a jsonb column takes; what JSON does not have becomes a text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    if depth >= MAX_DEPTH and isinstance(value, (Mapping, list)):
        return "nested too deep to be kept"
    if isinstance(value, Mapping):
        return {str(plain_text(key)): plain_json(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain_json(inner, depth + 1) for inner in value]
    return plain_text(value)
