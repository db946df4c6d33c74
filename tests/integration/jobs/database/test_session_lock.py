"""Locks of the database that keep two syncs, or two walks through the queues, from being at it at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dispatcher.interrupts import Stop
from jobs.database.connection import Cursor, session_lock
from jobs.database.lab_store import LabStore
from jobs.verify.queue_walk import walk_lock
from tests.support.database.postgres import Database


@pytest.fixture
def stores(database: Database) -> Iterator[tuple[LabStore, LabStore]]:
    """Two sessions."""
    made = (
        LabStore(database.url, application_name="test-1"),
        LabStore(database.url, application_name="test-2"),
    )
    yield made
    for store in made:
        store.close()


def keepalives(cursor: Cursor) -> list[str]:
    found: list[str] = []
    for name in ("idle", "interval", "count"):
        cursor.execute(f"SHOW tcp_keepalives_{name}")
        found += cursor.fetchone() or ()
    return found


def test_a_walk_whose_node_vanishes_gives_its_turn_back_within_a_minute(
    stores: tuple[LabStore, LabStore],
) -> None:
    store, _ = stores
    with walk_lock(store, Stop()):
        assert store.transaction(keepalives) == ["30", "10", "3"]


def test_a_lock_is_of_its_name_and_of_one_session(stores: tuple[LabStore, LabStore]) -> None:
    mine, theirs = stores
    with session_lock(mine, "a") as held:
        with session_lock(theirs, "a") as also, session_lock(theirs, "b") as other:
            assert (held, also, other) == (True, False, True)
        with session_lock(theirs, "a") as also:
            assert not also, "who did not hold it has not left it either"
    with session_lock(theirs, "a") as held:
        assert held


def test_a_session_that_ends_gives_its_lock_back(stores: tuple[LabStore, LabStore]) -> None:
    mine, theirs = stores

    def pause() -> None:
        mine.close()

    with session_lock(mine, "a"), session_lock(theirs, "a", pause=pause) as held:
        assert held


def test_what_a_pause_raises_ends_the_wait(stores: tuple[LabStore, LabStore]) -> None:
    mine, theirs = stores

    def pause() -> None:
        raise TimeoutError

    with session_lock(mine, "a"), pytest.raises(TimeoutError), session_lock(theirs, "a", pause=pause):
        pass
