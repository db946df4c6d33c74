"""Thousands of histories of creates, deletes, duplicates, crashes and troubles, and what holds in each.

The handlers and PostgreSQL are real; broker and cluster are simulated in this process, so that containers
can meet, and die, at any point of each other's work. A byte of a history is one choice of what happens next.
TEST_HISTORIES=20000 lives that many others, at random.
"""

from __future__ import annotations

import os
import time
from collections import Counter

import pytest

from tests.support.histories.bench import Bench
from tests.support.histories.search import bench, live_many, quick  # noqa: F401  # two are fixtures

#: Each is lived by a process of its own where tests run in several.
PARTS = range(1, 5)
HISTORIES = int(os.environ.get("TEST_HISTORIES", "2000")) // len(PARTS)
#: Each must have occurred in each part.
KINDS = [
    "create_lab_pod while create_lab_pod",
    "create_lab_pod while delete_lab_pod",
    "delete_lab_pod while create_lab_pod",
    "delete_lab_pod while delete_lab_pod",
    "create after the lab's end",
    "create_lab_pod loses at its commit",
    "a message is delivered again",
    "killed before the commit",
    "killed after the commit",
    "a container without its message goes on",
    "a container fails what the broker gave up",
    "a create replaces the Pod of another",
    "cancelled while it waits",
    "cancelled while it runs",
    "a lab is over its time",
    "a stop is asked for again",
    "a lab is extended",
    "an extension that is refused",
    "an extension while a cleanup is at it",
    "killed before it relays",
    "a Pod is removed by somebody",
    "a Pod is evicted",
    "the template changes",
    "poison",
    "API: away",
    "API: answer lost",
    "API: quota",
    "database: away",
    "database: answer lost",
    "publish: lost",
    "publish: confirm lost",
    "ended: succeeded",
    "ended: noop",
    "ended: retried",
    "ended: failed",
    "ended: dead_lettered",
    "ended: revoked",
]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", PARTS, ids="part {}".format)
def test_every_history_ends_as_it_should(
    bench: Bench,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    part: int,
) -> None:
    seen: Counter[str] = Counter()
    began = time.monotonic()
    live_many(bench, HISTORIES, seen, shrink=True, first=part)
    with capsys.disabled():
        print(f"\n{seen['histories']} histories, {seen['moves']} moves, {time.monotonic() - began:.0f} s")
        print("\n".join(f"{seen[kind]:>7} {kind}" for kind in KINDS))
    assert [kind for kind in KINDS if not seen[kind]] == []
    assert seen["histories"] >= HISTORIES
