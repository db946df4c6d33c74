"""Read the schedules in the bucket, change a value, and write them unless somebody else wrote meanwhile.

Comments and order stay: the text of the value alone is replaced. What the new text says is read again, so a
form of YAML that is not foreseen here is refused and never written wrongly.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from cronjobs.timetable import SCHEDULES, SHIPPED, Schedule, parse_schedules
from dispatcher.errors import DispatcherError
from dispatcher.settings import read_settings
from jobs.config.environment import StoreSettings
from jobs.config.objectstore import ObjectStore, StoredObject
from jobs.errors import JobError
from jobs.failures import Failure

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
    def schedules(self) -> dict[str, Schedule]:
        """Return the entries. Raises InvalidSchedules."""
        source = SCHEDULES if self.stored else f"{SCHEDULES} of this release (nothing is stored)"
        return parse_schedules(self.content, source)


class Bucket:
    """The bucket with the document."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._store = ObjectStore(read_settings(environ, StoreSettings.from_environment))

    def read(self) -> Document:
        """Raise JobError when the store does not answer or refuses."""
        try:
            stored = self._store.read(SCHEDULES)
        except JobError as exc:
            if exc.failure is not Failure.CONFIGURATION_MISSING:
                raise
            return Document(SHIPPED.read_bytes(), None)
        return Document(stored.content, stored)

    def change(
        self, change: Callable[[bytes], bytes], *, check: Callable[[dict[str, Schedule]], object]
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

    Raises InvalidSchedules, and DispatcherError when neither has the entry or the text cannot be changed.
    """
    known = parse_schedules(content)
    text = content.decode()
    if name not in known:
        text = _with_shipped(text, name, known)
    for key, value in changes.items():
        text = _with_value(text, name, key, value)
    return text.encode()


def _with_shipped(text: str, name: str, known: Mapping[str, Schedule]) -> str:
    shipped = yaml.safe_load(SHIPPED.read_bytes())
    if name not in shipped:
        raise DispatcherError(f"no schedule {name!r}; there are {', '.join(sorted({*known, *shipped}))}")
    entry = {name: shipped[name]}
    root = _mapping(text)
    if root.flow_style:
        end = root.value[-1][1].end_mark.index
        changed = f"{text[:end]}, {json.dumps(entry)[1:-1]}{text[end:]}"
    else:
        changed = text.rstrip("\n") + "\n\n" + yaml.safe_dump(entry, sort_keys=False)
    if not _says(changed, yaml.safe_load(text) | entry):
        line = root.start_mark.line + 1
        raise DispatcherError(
            f"{SCHEDULES}: {name} cannot be added to what begins in line {line}; allowed is a document"
            " whose names begin their lines, with nothing behind the last entry"
        )
    return changed


def _with_value(text: str, name: str, key: str, value: str | bool | int | None) -> str:
    entry = next(node for key_node, node in _mapping(text).value if key_node.value == name)
    place = next((at for at, (node, _) in enumerate(entry.value) if node.value == key), None)
    wanted = yaml.safe_load(text)
    wanted[name].pop(key, None)
    # As JSON, which YAML reads alike: a schedule needs its quotes.
    shown = json.dumps(value)
    if value is not None:
        wanted[name][key] = yaml.safe_load(shown)
    if place is None:
        changed = text if value is None else _with_key(text, entry, f"{key}: {shown}")
    elif value is None:
        changed = _without(text, entry, place)
    else:
        key_node, node = entry.value[place]
        changed = _replaced(text, key_node, node, shown)
    if not _says(changed, wanted):
        line = entry.value[place or 0][0].start_mark.line + 1
        raise DispatcherError(
            f"{SCHEDULES}: {name}: {key} cannot be changed in line {line} as it is written there;"
            f" allowed is a line of its own, {key}: VALUE"
        )
    return changed


def _mapping(text: str) -> yaml.MappingNode:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise TypeError("the document was parsed before")
    return root


def _says(text: str, wanted: dict[str, Any]) -> bool:
    try:
        return bool(yaml.safe_load(text) == wanted)
    except yaml.YAMLError:
        return False


def _replaced(text: str, key: yaml.Node, value: yaml.Node, shown: str) -> str:
    begin, end = value.start_mark.index, _end(text, value)
    if begin == end:
        return f"{text[: key.end_mark.index]}: {shown}{text[end:]}"
    comment = None
    if _is_block(value):
        comment = re.search(r"\s+#.*", text[begin:end].partition("\n")[0])
    return text[:begin] + shown + (comment[0] if comment else "") + text[end:]


def _with_key(text: str, entry: yaml.MappingNode, line: str) -> str:
    first = entry.value[0][0].start_mark
    separator = ", " if entry.flow_style else "\n" + " " * first.column
    return f"{text[: first.index]}{line}{separator}{text[first.index :]}"


def _without(text: str, entry: yaml.MappingNode, place: int) -> str:
    """Return the text without a key and its value; an entry has two more, its task and its schedule."""
    key, value = entry.value[place]
    begin, end = key.start_mark.index, _end(text, value)
    # Comments before and after it may be about something else.
    if not entry.flow_style:
        return text[: text.rfind("\n", 0, begin) + 1] + text[text.find("\n", end) + 1 or len(text) :]
    if comma := re.match(r"\s*,\s*", text[end:]):
        return text[:begin] + text[end + comma.end() :]
    return re.sub(r",\s*\Z", "", text[:begin]) + text[end:]


def _end(text: str, value: yaml.Node) -> int:
    """Return where a value ends; PyYAML counts the empty lines after a block to it."""
    begin, end = value.start_mark.index, int(value.end_mark.index)
    return begin + len(text[begin:end].rstrip()) if _is_block(value) else end


def _is_block(value: yaml.Node) -> bool:
    return isinstance(value, yaml.ScalarNode) and value.style in ("|", ">")
