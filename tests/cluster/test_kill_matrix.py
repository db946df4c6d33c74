"""The container of a create or of a delete, ended at each of its steps by SIGKILL and by SIGTERM.

Broker, database, object store and cluster are the real ones; the container is `python -m jobs` with one
observer more. However it ends, its message comes back, or was settled, and the end is the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from dispatcher import Dispatcher, TaskState, topology
from tests.support.agreement import wait_until_all_agree
from tests.support.kill_matrix import BACK_S, MAIN_THREAD, Cell, Trials
from tests.support.own_platform import OwnPlatform

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


@pytest.fixture(scope="module")
def trials(own_platform: OwnPlatform, request: pytest.FixtureRequest) -> Iterator[Trials]:
    trials = Trials(own_platform)
    yield trials
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n\n{trials.table()}\n")


@pytest.fixture(scope="module")
def dispatcher(own_platform: OwnPlatform) -> Iterator[Dispatcher]:
    with Dispatcher(own_platform.broker.url, database=own_platform.database.url) as dispatcher:
        yield dispatcher


def serve_what_is_left(trials: Trials, cell: Cell, queue: str) -> None:
    """Let containers without a fault take what came back, if anything did."""
    if cell.back_s is None:
        assert trials.finds_nothing(queue)
        return
    if cell.fault != "kill":
        assert trials.deliveries_counted(queue) == trials.cost_of_giving_back
        assert cell.back_s < BACK_S, "the message came back only after a timeout"
    trials.serve(queue)


def check_exit(cell: Cell) -> None:
    if cell.fault == "kill":
        assert cell.exit_code == -9
    elif cell.step in MAIN_THREAD:
        assert cell.exit_code == 0
    elif cell.fault == "term":
        assert cell.exit_code == 143
    else:
        assert cell.exit_code in (0, 143)


def check_end(
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


@pytest.mark.parametrize(("step", "fault"), CREATES)
def test_a_create_ends_with_one_running_lab(
    trials: Trials, dispatcher: Dispatcher, step: str, fault: str
) -> None:
    began = time.monotonic()
    lab = trials.platform.database.add_lab()
    task_id = trials.publish_create(lab)
    cell = trials.end_at("create", topology.QUEUE_NORMAL, fault, step)
    check_exit(cell)
    serve_what_is_left(trials, cell, topology.QUEUE_NORMAL)
    check_end(trials, dispatcher, cell, task_id, lab, "RUNNING")
    trials.running.append(lab)
    cell.seconds = time.monotonic() - began


@pytest.mark.parametrize(("step", "fault"), DELETES)
def test_a_delete_ends_with_nothing_left(
    trials: Trials, dispatcher: Dispatcher, step: str, fault: str
) -> None:
    began = time.monotonic()
    lab = trials.running_lab()
    task_id = trials.publish_delete(lab)
    cell = trials.end_at("delete", topology.QUEUE_HIGH, fault, step)
    check_exit(cell)
    serve_what_is_left(trials, cell, topology.QUEUE_HIGH)
    check_end(trials, dispatcher, cell, task_id, lab, "STOPPED")
    cell.seconds = time.monotonic() - began
