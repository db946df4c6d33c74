"""The document in the bucket: read it, and write it unless somebody else did."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cronjobs.schedules import SCHEDULES, SHIPPED, Schedule, parse_schedules
from dispatcher.errors import DispatcherError
from dispatcher.settings import read_settings
from jobs.errors import JobError
from jobs.failures import Failure
from jobs.objectstore import ObjectStore, StoredObject
from jobs.settings import StoreSettings

#: Times that a change is made anew because somebody else changed the document meanwhile.
_ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class Document:
    """The schedules as they are stored, or as this release ships them where nothing is stored."""

    content: bytes
    #: None: nothing is stored.
    stored: StoredObject | None

    @property
    def source(self) -> str:
        """Return where it is from, for people."""
        return SCHEDULES if self.stored else f"{SCHEDULES} of this release (nothing is stored)"

    @property
    def schedules(self) -> dict[str, Schedule]:
        """Return its entries. Raises InvalidSchedules."""
        return parse_schedules(self.content, self.source)


class Bucket:
    """Where the document is."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._store = ObjectStore(read_settings(environ, StoreSettings.from_environment))

    def read(self) -> Document:
        """Return the document. Raises JobError."""
        try:
            stored = self._store.read(SCHEDULES)
        except JobError as exc:
            if exc.failure is not Failure.CONFIGURATION_MISSING:
                raise
            return Document(SHIPPED.read_bytes(), None)
        return Document(stored.content, stored)

    def change(
        self, change: Callable[[bytes], bytes], *, check: Callable[[dict[str, Schedule]], None]
    ) -> None:
        """Write what `change` makes of the document, once `check` took it; anew if somebody else wrote.

        Raises JobError, InvalidSchedules, and DispatcherError when others write all the time.
        """
        for _ in range(_ATTEMPTS):
            document = self.read()
            content = change(document.content)
            if content == document.content and document.stored:
                return
            check(parse_schedules(content))
            if self._store.write(SCHEDULES, content, replaces=document.stored):
                return
        raise DispatcherError(f"others change {SCHEDULES} all the time; nothing was changed")
