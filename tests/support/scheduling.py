"""Which process of pytest-xdist runs which test, and in which order: `--dist loadscope`.

A file goes to one process, for the fixtures of its module. `--dist loadgroup` would do, but pytest-xdist 3.8
does not see groups with pytest 9.2, and sends each test anywhere.
"""

from __future__ import annotations

from collections import Counter

import pytest
from xdist.scheduler import LoadScopeScheduling

#: Files whose tests share nothing and take long: each may go to another process.
APART = ("tests/integration/histories/test_lab_histories.py",)
_TESTS_THAT_WAIT = "tests/cluster/"


class Files(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """Give whole files to processes."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def group_of(nodeid: str) -> str:
    """Return what the tests of one process have in common."""
    file = nodeid.partition("::")[0]
    return nodeid if file in APART else file


def put_in_order(items: list[pytest.Item]) -> None:
    """Let no process begin with a long group when the others are about to end.

    Groups that wait for Pods alternate with those that compute: four of a kind at once would leave the cores
    idle, or wait for them.
    """
    longest: Counter[str] = Counter()
    for item in items:
        marker = item.get_closest_marker("timeout")
        group = group_of(item.nodeid)
        longest[group] = max(longest[group], marker.args[0] if marker else 0)
    groups = sorted(longest, key=lambda group: -longest[group])
    waiting = [group for group in groups if group.startswith(_TESTS_THAT_WAIT)]
    computing = [group for group in groups if not group.startswith(_TESTS_THAT_WAIT)]
    turn = {group: number for kind in (waiting, computing) for number, group in enumerate(kind)}
    items.sort(key=lambda item: turn[group_of(item.nodeid)])
