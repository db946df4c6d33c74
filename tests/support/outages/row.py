"""One outage while a backend starts and stops labs: how it went, as a line of a table.

Every lab ends as it was asked to, or FAILED with a reason that names the outage; none is lost, none is
doubled, and `autolabs verify` finds nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.outages.look import Outcome, differences, look
from tests.support.outages.loop import LABS, Loop
from tests.support.waiting import eventually, eventually_equal

#: Requests after which the outage begins, as soon as a container is at work.
BEGIN_AFTER = 4
#: Seconds after an outage; three retries take at most 35.
RIGHT_S = 180.0
#: Seconds for the backend to ask for its labs, and for `autolabs verify` to agree; they only end a hang.
ASKED_S, AGREED_S = 120.0, 120.0

HEADER = (
    f"{'outage':<28} {'away s':>6} {'labs':>5} {'RUNNING':>8} {'FAILED':>8} {'STOPPED':>8} {'lost':>5}"
    f" {'doubled':>8} {'right s':>8} {'retries':>8} {'redeliveries':>12}"
)


@dataclass
class Row:
    """What is printed of an outage under HEADER."""

    outage: str
    away_s: float = 0.0
    right_s: float | None = None
    outcome: Outcome = field(default_factory=Outcome)
    note: str = ""

    def line(self) -> str:
        seen = self.outcome
        failed = f"{len(seen.failed)} {'+'.join(sorted(set(seen.failed)))}".strip()
        right = "never" if self.right_s is None else f"{self.right_s:.1f}"
        return (
            f"{self.outage:<28} {self.away_s:>6.1f} {LABS:>5} {seen.running:>8} {failed:>8} {seen.stopped:>8}"
            f" {seen.lost:>5} {seen.doubled:>8} {right:>8} {seen.retries:>8} {seen.redeliveries:>12}"
            f"  {self.note}"
        )


def go_through(
    row: Row,
    loop: Loop,
    outage: Callable[[], object],
    *,
    causes: frozenset[str] = frozenset(),
    begin_after: int = BEGIN_AFTER,
) -> None:
    """Let the outage come while the loop runs; check that all is right some time after it."""
    loop.start()
    eventually(
        lambda: loop.requested >= begin_after and loop.is_served(), ASKED_S, what="labs asked for and served"
    )
    began = time.monotonic()
    outage()
    over = time.monotonic()
    row.away_s = over - began
    loop.end()

    def right() -> list[str]:
        row.outcome = look(loop, causes)
        return row.outcome.wrong

    nothing: list[str] = []
    eventually_equal(right, nothing, RIGHT_S)
    row.right_s = time.monotonic() - over
    eventually_equal(lambda: differences(loop), nothing, AGREED_S)
    assert (row.outcome.lost, row.outcome.doubled) == (0, 0)
    if loop.asked_again:
        row.note = f"backend asked {loop.asked_again} times again"
