"""Mount points below our own folders."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from deploy.local.errors import LocalClusterError

MNT_DETACH = 2


def below(folders: Iterable[Path]) -> list[str]:
    """Return the mount points, the last mounted first."""
    text = Path("/proc/self/mountinfo").read_text()
    return parse(text, [f"{folder}/" for folder in folders])


def parse(mountinfo: str, prefixes: list[str]) -> list[str]:
    """Pick the mount points under a prefix."""
    points = [_unescape(line.split()[4]) for line in mountinfo.splitlines()]
    return [p for p in points if any(p.startswith(prefix) for prefix in prefixes)][::-1]


def _unescape(point: str) -> str:
    # The kernel writes a space as a backslash and three octal digits.
    raw = point.encode().decode("unicode_escape").encode("latin-1") if "\\" in point else None
    return raw.decode() if raw else point


def unmount_below(folders: Iterable[Path]) -> None:
    """Unmount them all; what is busy is detached, since its users were ended before."""
    watched = list(folders)
    libc = ctypes.CDLL(None, use_errno=True)
    for point in below(watched):
        if libc.umount2(os.fsencode(point), 0) != 0:
            libc.umount2(os.fsencode(point), MNT_DETACH)
    if left := below(watched):
        raise LocalClusterError("could not unmount " + ", ".join(left))
