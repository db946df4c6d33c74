"""What we changed outside our own folders, written down before it is changed.

`up` after a crash and `down` undo what stands here and nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.local.paths import Layout


def read(layout: Layout) -> dict[str, Any]:
    """Return all sections; empty when nothing was changed."""
    try:
        content = json.loads(_path(layout).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def remember(layout: Layout, section: str, name: str, value: str) -> None:
    """Keep the first value: a second `up` must not take our own setting for the original."""
    content = read(layout)
    entries = content.setdefault(section, {})
    if name in entries:
        return
    entries[name] = value
    _write(layout, content)


def entries(layout: Layout, section: str) -> dict[str, str]:
    """Return one section: name and original value."""
    found = read(layout).get(section, {})
    return {str(name): str(value) for name, value in found.items()}


def forget(layout: Layout) -> None:
    """Drop the journal, once everything in it is undone."""
    _path(layout).unlink(missing_ok=True)


def _write(layout: Layout, content: dict[str, Any]) -> None:
    temporary = _path(layout).with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(_path(layout))


def _path(layout: Layout) -> Path:
    return layout.state / "journal.json"
