"""Who listens on the ports that we need."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from deploy.local import cgroups
from deploy.local.settings import PORTS

LISTEN = "0A"
ANY = ("0.0.0.0", "::")  # noqa: S104  (compared with, never bound)


def conflicts() -> Iterator[str]:
    """Yield a sentence for each port of ours that somebody else listens on."""
    ours = cgroups.members() if cgroups.ROOT.is_dir() else set()
    listening = list(listeners())
    owners = _owners({inode for _, _, inode in listening})
    for address, port, purpose in PORTS:
        for other_address, other_port, inode in listening:
            if other_port != port or other_address not in (address, *ANY):
                continue
            pid = owners.get(inode)
            unknown = pid is None and bool(ours)  # only root is told whose a socket is
            if pid not in ours and not unknown:
                yield f"TCP port {port} for {purpose}: in use by {_describe(pid)}"


def listeners(tables: tuple[str, ...] = ("tcp", "tcp6")) -> Iterator[tuple[str, int, str]]:
    """Yield (address, port, inode) of every listening TCP socket."""
    for table in tables:
        with contextlib.suppress(FileNotFoundError):  # no IPv6 in this kernel
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTEN:
                    address, port = parse_address(fields[1])
                    yield address, port, fields[9]


def parse_address(text: str) -> tuple[str, int]:
    """Parse the kernel's `0100007F:1F90`: words in host byte order, the port in hex."""
    packed, _, port = text.partition(":")
    words = [int(packed[i : i + 8], 16) for i in range(0, len(packed), 8)]
    raw = struct.pack(f"={len(words)}I", *words)
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, raw).removeprefix("::ffff:"), int(port, 16)


def _owners(inodes: set[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    target = str(descriptor.readlink())
                    inode = target.removeprefix("socket:[").removesuffix("]")
                    if target.startswith("socket:[") and inode in inodes:
                        found[inode] = int(process.name)
    return found


def _describe(pid: int | None) -> str:
    if pid is None:
        return "somebody else"
    with contextlib.suppress(OSError):
        return f"pid {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    return f"pid {pid}"
