"""Say which extra to install, where an import of one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dispatcher.errors import MissingExtra

#: Extra -> the modules that it brings.
_MODULES = {"db": {"sqlalchemy", "alembic", "psycopg2"}}


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Raise MissingExtra if the block imports what the extra brings and is not installed."""
    try:
        yield
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in _MODULES[name]:
            raise
        raise MissingExtra(
            f"{exc.name} is not installed; it comes with: pip install 'autolabs-jobs[{name}]'"
        ) from exc
