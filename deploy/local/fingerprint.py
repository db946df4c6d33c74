"""Content hashes: the same input gives the same name in the cache, from whichever checkout."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def of_parts(parts: Iterable[bytes | str]) -> str:
    """Return 12 hex digits over the parts; lengths are hashed too, so that borders count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()[:12]


def of_files(files: Iterable[tuple[str, Path]], *extra: str) -> str:
    """Hash (name in the image, file) pairs in name order: name, executable bit, content."""
    parts: list[bytes | str] = list(extra)
    for name, path in sorted(files):
        executable = "x" if path.stat().st_mode & 0o100 else "-"
        parts += [name, executable, path.read_bytes()]
    return of_parts(parts)
