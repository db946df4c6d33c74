"""The kill matrix: the container of a create or of a delete, ended at each of its steps in each way.

However it ends, its message comes back, or was settled, and the end is the same. Broker, database and object
store are the real ones, and the container is `python -m jobs` with one observer more. A cell at which the
lab's objects are about to change is tried on the real cluster; at the others there are none yet, or they are
as they are to stay, and a scripted API server does. Both modules use the fixtures and tests of this one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from dispatcher import Dispatcher, TaskState
from dispatcher.broker import topology
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.containers.kill_matrix import BACK_S, MAIN_THREAD, Cell, Trials
from tests.support.labs.agreement import wait_until_all_agree

CREATE_STEPS = [
    "claimed",
    "begun",
    "rendered",
    "Pod created",
    "Service created",
    "NetworkPolicy created",
    "applied",
    "ready",
    "answers",
    "committing",
    "running",
    "settling",
    "acknowledged",
]
DELETE_STEPS = [
    "claimed",
    "begun",
    "stop_requested",
    "Pod deleted",
    "Service deleted",
    "NetworkPolicy deleted",
    "gone",
    "committing",
    "stopped",
    "settling",
    "acknowledged",
]
#: From here on the outcome is committed.
COMMITTED = ("running", "stopped", *MAIN_THREAD)
CREATES = [(step, fault) for fault in ("kill", "term") for step in CREATE_STEPS]
CREATES += [(step, "drain") for step in ("begun", "Pod created", "applied", "ready", "committing", "running")]
DELETES = [(step, fault) for fault in ("kill", "term") for step in DELETE_STEPS]
DELETES += [(step, "drain") for step in ("begun", "stop_requested", "Pod deleted", "gone", "committing")]
CELLS = len(CREATES) + len(DELETES)

#: Before a lab has objects, and once they are what they are to stay.
_NO_OBJECT_YET = ("claimed", "begun", "rendered", "stop_requested")
_OBJECTS_STAY = ("gone", "stopped", "running", *MAIN_THREAD)


def changes_objects(operation: str, step: str, fault: str) -> bool:
    """Tell whether the objects of a lab may be changing when a container is ended at a step."""
    if step in _OBJECTS_STAY or (operation, step) == ("delete", "committing"):
        return False
    # After `drain` the container goes on for a while.
    return fault == "drain" or step not in _NO_OBJECT_YET


CREATES_ON_THE_CLUSTER = [cell for cell in CREATES if changes_objects("create", *cell)]
DELETES_ON_THE_CLUSTER = [cell for cell in DELETES if changes_objects("delete", *cell)]
OTHER_CREATES = [cell for cell in CREATES if cell not in CREATES_ON_THE_CLUSTER]
OTHER_DELETES = [cell for cell in DELETES if cell not in DELETES_ON_THE_CLUSTER]


@pytest.fixture(scope="module")
def lab_image() -> str:
    """What the labs of the trials run; a module may say another."""
    return os.environ["LAB_IMAGE"]


@pytest.fixture(scope="module")
def trials(own_platform: OwnPlatform, lab_image: str, request: pytest.FixtureRequest) -> Iterator[Trials]:
    trials = Trials(own_platform, lab_image)
    yield trials
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n\n{len(trials.cells)} of {CELLS} cells:\n{trials.table()}\n")


@pytest.fixture(autouse=True)
def nothing_is_left(trials: Trials) -> Iterator[None]:
    yield
    trials.clean()


@pytest.fixture(scope="module")
def dispatcher(own_platform: OwnPlatform) -> Iterator[Dispatcher]:
    with Dispatcher(own_platform.broker.url, database=own_platform.database.url) as dispatcher:
        yield dispatcher


def try_create(trials: Trials, dispatcher: Dispatcher, step: str, fault: str) -> None:
    """End the container of a create; fails unless its lab is RUNNING in the end."""
    began = time.monotonic()
    lab = trials.platform.database.add_lab()
    task_id = trials.publish_create(lab)
    cell = trials.end_at("create", topology.QUEUE_NORMAL, fault, step)
    _check_exit(cell)
    _serve_what_is_left(trials, cell, topology.QUEUE_NORMAL)
    _check_end(trials, dispatcher, cell, task_id, lab, "RUNNING")
    trials.running.append(lab)
    cell.seconds = time.monotonic() - began


def try_delete(trials: Trials, dispatcher: Dispatcher, step: str, fault: str) -> None:
    """End the container of a delete; fails unless its lab is STOPPED in the end, and nothing is left."""
    began = time.monotonic()
    lab = trials.running_lab()
    task_id = trials.publish_delete(lab)
    cell = trials.end_at("delete", topology.QUEUE_HIGH, fault, step)
    _check_exit(cell)
    _serve_what_is_left(trials, cell, topology.QUEUE_HIGH)
    _check_end(trials, dispatcher, cell, task_id, lab, "STOPPED")
    cell.seconds = time.monotonic() - began


def _serve_what_is_left(trials: Trials, cell: Cell, queue: str) -> None:
    """Let containers without a fault take what came back, if anything did."""
    if cell.back_s is None:
        assert trials.finds_nothing(queue)
        return
    assert cell.back_s < BACK_S, "the message came back only after a timeout"
    if cell.fault != "kill":
        assert trials.deliveries_counted(queue) == trials.cost_of_giving_back
    trials.serve(queue)


def _check_exit(cell: Cell) -> None:
    if cell.fault == "kill":
        assert cell.exit_code == -9
    elif cell.step in MAIN_THREAD:
        assert cell.exit_code == 0
    elif cell.fault == "term":
        assert cell.exit_code == 143
    else:
        assert cell.exit_code in (0, 143)


def _check_end(
    trials: Trials, dispatcher: Dispatcher, cell: Cell, task_id: str, lab: int, expected: str
) -> None:
    """Check lab, ledger, result, queues, and that database, cluster and broker agree."""
    runs = trials.runs(task_id)
    cell.end, cell.runs = trials.status(lab), " ".join(run["outcome"] for run in runs)
    assert cell.end == expected
    outcomes = [run["outcome"] for run in runs]
    assert outcomes.count("succeeded") == 1, outcomes
    if cell.fault != "drain":  # where it is chance what the container could still do
        first = [] if cell.step == "claimed" else ["succeeded" if cell.step in COMMITTED else "started"]
        again = [] if cell.back_s is None else ["noop" if cell.step in COMMITTED else "succeeded"]
        assert outcomes == [*first, *again]
    assert {run["attempt"] for run in runs} == {1}
    assert dispatcher.status(task_id).state is TaskState.SUCCESS
    wait_until_all_agree(trials.platform)
