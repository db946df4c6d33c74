from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.quantities import parse_quantity
from dispatcher.tasks import _BYTES, _CPU
from jobs.config.lab_settings import share_of_cpu, share_of_memory


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500m", Fraction(1, 2)), ("2", 2), ("0.25", Fraction(1, 4)), ("1k", 1000), ("1Ki", 1024),
        ("512Mi", 2**29), ("2G", 2 * 10**9), ("1Ti", 2**40),
    ],
)  # fmt: skip
def test_a_quantity_is_read(text: str, value: Fraction | int) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize(
    "text", ["", "Mi", "1Pi", "1mm", "1iM", "x", "1 Gi", "1e", "--1", "1KiB", "1/0", "1/2"]
)
def test_what_is_no_quantity_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)


@given(st.from_regex(_CPU, fullmatch=True), st.floats(0.01, 1))
def test_a_share_of_a_cpu_is_between_one_millicore_and_the_limit(limit: str, ratio: float) -> None:
    share = parse_quantity(share_of_cpu(limit, ratio))
    assert Decimal("0.001") <= share <= max(parse_quantity(limit), Decimal("0.001"))


@given(st.from_regex(_BYTES, fullmatch=True), st.floats(0.01, 1))
def test_a_share_of_memory_is_above_zero_and_at_most_the_limit(limit: str, ratio: float) -> None:
    share, total = parse_quantity(share_of_memory(limit, ratio)), parse_quantity(limit)
    assert share <= total
    assert share >= 2**20 or share == total
