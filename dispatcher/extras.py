"""Say which extra to install, where an import of one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dispatcher.errors import MissingExtra


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Raise MissingExtra if the block imports what is not installed."""
    try:
        yield
    except ModuleNotFoundError as exc:
        raise MissingExtra(
            f"{exc.name} is not installed; it comes with: pip install 'autolabs-jobs[{name}]'"
        ) from exc
