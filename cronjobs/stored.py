"""The document in the bucket: read, change a value of an entry in place, write unless somebody else did.

A change keeps the comments and the order of the document: the text of the value alone is replaced.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import yaml

from cronjobs.schedules import SCHEDULES, SHIPPED, Schedule, parse_schedules
from dispatcher.errors import DispatcherError
from dispatcher.settings import read_settings
from jobs.errors import JobError
from jobs.failures import Failure
from jobs.objectstore import ObjectStore, StoredObject
from jobs.settings import StoreSettings

#: Times that a change is made anew because somebody else changed the document meanwhile.
_ATTEMPTS = 8
#: Key of an entry -> its new value; None takes it away.
Changes = Mapping[str, str | bool | int | None]


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


def with_changes(content: bytes, name: str, changes: Changes) -> bytes:
    """Return the document with an entry changed; one that it lacks is taken from this release.

    Raises DispatcherError when neither has the entry.
    """
    text = content.decode()
    if name not in parse_schedules(content):
        text = text.rstrip("\n") + "\n\n" + _shipped_entry(name, parse_schedules(content))
    for key, value in changes.items():
        text = _with_value(text, name, key, value)
    return text.encode()


def _shipped_entry(name: str, known: Mapping[str, Schedule]) -> str:
    shipped = yaml.safe_load(SHIPPED.read_bytes())
    if name not in shipped:
        raise DispatcherError(f"no schedule {name!r}; there are {', '.join(sorted({*known, *shipped}))}")
    return str(yaml.safe_dump({name: shipped[name]}, sort_keys=False))


def _with_value(text: str, name: str, key: str, value: str | bool | int | None) -> str:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise TypeError("the document was parsed before")
    entry = next(node for key_node, node in root.value if key_node.value == name)
    place = next((at for at, (node, _) in enumerate(entry.value) if node.value == key), None)
    # As JSON, which YAML reads alike: a schedule needs its quotes.
    shown = json.dumps(value)
    if place is not None and value is not None:
        node = entry.value[place][1]
        return text[: node.start_mark.index] + shown + text[node.end_mark.index :]
    if place is not None:
        return _without(text, entry, place)
    if value is None:
        return text
    first = entry.value[0][0].start_mark
    separator = ", " if entry.flow_style else "\n" + " " * first.column
    return f"{text[: first.index]}{key}: {shown}{separator}{text[first.index :]}"


def _without(text: str, entry: yaml.MappingNode, place: int) -> str:
    """Return the text without a key and its value; an entry has two more, its task and its schedule."""
    key, value = entry.value[place]
    if not entry.flow_style and isinstance(value, yaml.ScalarNode):
        # Its own lines alone: comments before and after it may be about something else.
        begin = text.rfind("\n", 0, key.start_mark.index) + 1
        end = text.find("\n", value.end_mark.index) + 1 or len(text)
        return text[:begin] + text[end:]
    if place + 1 < len(entry.value):
        return text[: key.start_mark.index] + text[entry.value[place + 1][0].start_mark.index :]
    return text[: entry.value[place - 1][1].end_mark.index] + text[value.end_mark.index :]
