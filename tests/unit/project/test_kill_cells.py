"""Which cells of the kill matrix are tried, and where."""

from __future__ import annotations

from tests.support.containers import kill_cells


def test_each_of_the_59_cells_is_tried_with_or_without_a_cluster() -> None:
    on_the_cluster = len(kill_cells.CREATES_ON_THE_CLUSTER) + len(kill_cells.DELETES_ON_THE_CLUSTER)
    others = len(kill_cells.OTHER_CREATES) + len(kill_cells.OTHER_DELETES)
    assert (on_the_cluster, others, kill_cells.CELLS) == (28, 31, 59)


def test_what_changes_objects_is_tried_on_the_cluster() -> None:
    cells = {*kill_cells.CREATES_ON_THE_CLUSTER, *kill_cells.DELETES_ON_THE_CLUSTER}
    changes = [
        f"{kind} {done}" for kind in ("Pod", "Service", "NetworkPolicy") for done in ("created", "deleted")
    ]
    assert {(step, fault) for step in [*changes, "applied", "ready"] for fault in ("kill", "term")} <= cells
