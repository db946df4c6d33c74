"""How many labs may be changed at once, and what is believed to be another place."""

from __future__ import annotations

import pytest

from jobs.verify.safety_limits import another_database


@pytest.mark.parametrize(
    ("strange", "matched", "refused"),
    [
        (0, 0, False),
        (1, 0, True),
        (1, 1, True),
        (1, 2, False),
        (3, 47, False),
        (3, 9997, False),
        (25, 25, True),
    ],
)
def test_another_database_is_where_at_least_half_of_the_labs_are_strange(
    strange: int, matched: int, refused: bool
) -> None:
    assert bool(another_database(strange=strange, matched=matched)) is refused
