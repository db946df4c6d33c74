from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport.native_delayed_delivery import calculate_routing_key

from dispatcher.broker import delay_ladder
from dispatcher.tasks import MAX_DELAY_S
from tests.support.broker.routing import delay_of

KEY = "lab.create"


@given(st.integers(1, MAX_DELAY_S))
def test_a_delay_is_written_as_kombu_writes_it(delay_s: int) -> None:
    routing_key = delay_ladder.delayed_routing_key(delay_s, KEY)
    assert routing_key == calculate_routing_key(delay_s, KEY)
    assert (delay_of(routing_key), delay_ladder.plain_routing_key(routing_key)) == (delay_s, KEY)


@pytest.mark.parametrize(
    ("delay_s", "held_s"),
    [(-5, 1), (0, 1), (0.2, 1), (1.0, 1), (1.001, 2), (2**28 - 1, 2**28 - 1), (1e300, 2**28 - 1)],
)
def test_a_delay_is_rounded_up_within_what_the_ladder_can_hold(delay_s: float, held_s: int) -> None:
    assert delay_of(delay_ladder.delayed_routing_key(delay_s, KEY)) == held_s


def test_a_second_delay_replaces_the_first() -> None:
    once = delay_ladder.delayed_routing_key(77, KEY)
    assert delay_ladder.delayed_routing_key(5, once) == delay_ladder.delayed_routing_key(5, KEY)


@pytest.mark.parametrize("routing_key", ["", "lab.create", "0.1.lab.create", "0." * 27 + "lab.create"])
def test_a_key_without_a_delay_is_left_as_it_is(routing_key: str) -> None:
    assert delay_ladder.plain_routing_key(routing_key) == routing_key
    assert delay_of(routing_key) == 0
