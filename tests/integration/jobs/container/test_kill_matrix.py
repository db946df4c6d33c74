"""The cells of the kill matrix at which a lab has no objects yet, or they are what they are to stay.

The cluster is a scripted API server; all the rest is real.
"""

from __future__ import annotations

import pytest

from dispatcher import Dispatcher
from tests.support.cluster.fake_namespace import own_namespace, own_platform  # noqa: F401  # fixtures
from tests.support.containers.kill_cells import (  # noqa: F401  # three are fixtures
    OTHER_CREATES,
    OTHER_DELETES,
    dispatcher,
    nothing_is_left,
    trials,
    try_create,
    try_delete,
)
from tests.support.containers.kill_matrix import Trials
from tests.support.factories import IMAGE


@pytest.fixture(scope="module")
def lab_image() -> str:
    return IMAGE


@pytest.mark.parametrize(("step", "fault"), OTHER_CREATES)
def test_a_create_ends_with_one_running_lab(
    trials: Trials,  # noqa: F811
    dispatcher: Dispatcher,  # noqa: F811
    step: str,
    fault: str,
) -> None:
    try_create(trials, dispatcher, step, fault)


@pytest.mark.parametrize(("step", "fault"), OTHER_DELETES)
def test_a_delete_ends_with_nothing_left(
    trials: Trials,  # noqa: F811
    dispatcher: Dispatcher,  # noqa: F811
    step: str,
    fault: str,
) -> None:
    try_delete(trials, dispatcher, step, fault)
