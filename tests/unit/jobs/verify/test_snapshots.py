"""What two looks make of the figures of the management API, older than the looks themselves."""

from __future__ import annotations

from typing import Any

import pytest

import jobs.verify.snapshot
from dispatcher import BrokerSettings
from jobs.verify.differences import Kind, Repair
from jobs.verify.inventory import Inventory, QueueContents
from jobs.verify.snapshot import HELD_SETTLE_S, SETTLE_S, Comparison, Sources, find_differences
from tests.unit.jobs.verify.test_differences import NOW, row

NOBODY: Any = None
NONE, HELD = {"q": 0}, {"q": 1}


def looks(monkeypatch: pytest.MonkeyPatch, *unacked: dict[str, int] | None) -> tuple[Comparison, list[float]]:
    """Compare a platform with one PENDING lab, of which each look saw so many messages held."""
    pauses: list[float] = []
    inventories = iter(
        Inventory(NOW, rows={5: row("PENDING")}, queues=QueueContents(unacked=figures)) for figures in unacked
    )
    monkeypatch.setattr(jobs.verify.snapshot, "take_inventory", lambda _sources: next(inventories))
    monkeypatch.setattr("dispatcher.interrupts.Stop.pause", lambda _self, seconds: pauses.append(seconds))
    url = None if unacked[0] is None else "http://management"
    sources = Sources(NOBODY, NOBODY, "labs", BrokerSettings("amqp://nowhere"), url)
    return find_differences(sources), pauses


def test_a_message_that_only_old_figures_see_held_does_not_hide_a_lost_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    findings, pauses = looks(monkeypatch, HELD, NONE)
    assert [(one.kind, one.repair) for one in findings.differences] == [
        (Kind.REQUEST_LOST, Repair.FAIL_PENDING)
    ]
    assert (findings.undecided, pauses) == (0, [HELD_SETTLE_S])


@pytest.mark.parametrize("before", [NONE, HELD], ids=["not seen before", "seen before"])
def test_a_message_that_is_held_at_the_second_look_leaves_the_lab_undecided(
    monkeypatch: pytest.MonkeyPatch, before: dict[str, int]
) -> None:
    findings, pauses = looks(monkeypatch, before, HELD)
    assert (findings.differences, findings.undecided, pauses) == ([], 1, [HELD_SETTLE_S])


def test_without_figures_nobody_waits_for_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    findings, pauses = looks(monkeypatch, None, None)
    assert [(one.kind, one.repair) for one in findings.differences] == [(Kind.REQUEST_LOST, None)]
    assert pauses == [SETTLE_S]
