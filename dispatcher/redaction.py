"""Texts for logs and monitors: short, and without what looks like a secret.

Celery puts argsrepr and kwargsrepr into the headers, where every monitor shows and every worker logs them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Characters; Celery's own limit of argsrepr and kwargsrepr.
MAX_CHARACTERS = 1024
HIDDEN = "***"

#: Compared with names in lower case without _ and -.
_SECRET_NAMES = (
    "passw", "pwd", "secret", "token", "apikey", "privatekey", "credential", "authorization", "cookie", "dsn",
)  # fmt: skip
#: The password of scheme://user:password@host
_URL_PASSWORD = re.compile(r"(?<=://)([^/@\s:]*):[^/\s]*@")


def safe_repr(value: Any, limit: int = MAX_CHARACTERS) -> str:
    """Return repr(value) with secrets hidden, cut to `limit` characters."""
    text = repr(value)
    if "://" in text or _is_secret_name(text):
        text = repr(redacted(value))
    return text if len(text) <= limit else text[: limit - 3] + "..."


def redacted(value: Any) -> Any:
    """Return a copy in which values under secret-like names and passwords in URLs are hidden."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if isinstance(key, str) and _is_secret_name(key) else redacted(inner)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(redacted(inner) for inner in value)
    if isinstance(value, str):
        return _URL_PASSWORD.sub(rf"\1:{HIDDEN}@", value)
    return value


def _is_secret_name(text: str) -> bool:
    # Substrings: a regular expression over a whole payload takes ten times as long.
    plain = text.lower().replace("_", "").replace("-", "")
    return any(name in plain for name in _SECRET_NAMES)
