"""What `make bench` says about the cost of a command."""

from __future__ import annotations

import pytest

from tests.bench.measured import Cost, cost_of

_HELD_MIB = 80


def test_the_peak_is_the_commands_own() -> None:
    # This process is larger, and what it forks would count that.
    held = bytearray(2 * _HELD_MIB * 2**20)
    program = f"held = b'x' * ({_HELD_MIB} * 2**20); del held; print('done')"
    cost = cost_of("-c", program, environ={}, timeout_s=30)
    assert _HELD_MIB <= cost.peak_mib < len(held) / 2**20
    assert cost.output == "done"


def test_seconds_and_seconds_of_cpu_are_told_apart() -> None:
    cost = cost_of("-c", "import select; select.select([], [], [], 0.5)", environ={}, timeout_s=30)
    assert cost.wall_s >= 0.5
    assert cost.cpu_s < cost.wall_s


def test_a_command_has_exactly_the_environment_that_is_given() -> None:
    program = "import os; print(os.environ['GIVEN'], 'HOME' in os.environ)"
    assert cost_of("-c", program, environ={"GIVEN": "1"}, timeout_s=30).output == "1 False"


def test_a_command_that_fails_is_an_error_with_what_it_printed() -> None:
    with pytest.raises(RuntimeError, match="no such lab"):
        cost_of("-c", "raise SystemExit('no such lab')", environ={}, timeout_s=30)


def test_the_worst_of_several_runs_is_the_worst_of_each_figure() -> None:
    worst = Cost.worst([Cost(1.0, 0.5, 60, "first"), Cost(2.0, 0.4, 50, "second")])
    assert (worst.wall_s, worst.cpu_s, worst.peak_mib) == (2.0, 0.5, 60)
