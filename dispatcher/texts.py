"""Texts of bounded length."""

from __future__ import annotations


def cut(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters; one that was longer ends with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
