"""The cells of the kill matrix at which a lab's objects change; the cluster is the real one too."""

from __future__ import annotations

import pytest

from dispatcher import Dispatcher
from tests.support.containers.kill_cells import (  # noqa: F401  # four are fixtures
    CREATES_ON_THE_CLUSTER,
    DELETES_ON_THE_CLUSTER,
    dispatcher,
    lab_image,
    nothing_is_left,
    trials,
    try_create,
    try_delete,
)
from tests.support.containers.kill_matrix import Trials


@pytest.mark.parametrize(("step", "fault"), CREATES_ON_THE_CLUSTER)
def test_a_create_ends_with_one_running_lab(
    trials: Trials,  # noqa: F811
    dispatcher: Dispatcher,  # noqa: F811
    step: str,
    fault: str,
) -> None:
    try_create(trials, dispatcher, step, fault)


@pytest.mark.parametrize(("step", "fault"), DELETES_ON_THE_CLUSTER)
def test_a_delete_ends_with_nothing_left(
    trials: Trials,  # noqa: F811
    dispatcher: Dispatcher,  # noqa: F811
    step: str,
    fault: str,
) -> None:
    try_delete(trials, dispatcher, step, fault)
