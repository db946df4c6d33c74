"""Turns at the one node: while a lab has asked for all of it, no Pod that is new finds room there.

Who asks for all waits for those who need some soon, and they for it; all others have the time.
"""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_LOCK = Path(tempfile.gettempdir()) / "autolabs-tests-node-room.lock"


@contextmanager
def _held(kind: int) -> Iterator[None]:
    with _LOCK.open("a") as file:
        fcntl.flock(file, kind)  # given back with the file, also by a process that is killed
        yield


@pytest.fixture
def whole_node() -> Iterator[None]:
    """Nobody needs room soon while this test asks for all of it."""
    with _held(fcntl.LOCK_EX):
        yield


@pytest.fixture(scope="module")
def node_room() -> Iterator[None]:
    """Nobody asks for the whole node while this module's Pods have some seconds to start."""
    with _held(fcntl.LOCK_SH):
        yield
