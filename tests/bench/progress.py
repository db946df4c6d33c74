"""Progress for people, apart from the figures."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Print a line."""
    print(text, file=sys.stderr, flush=True)
