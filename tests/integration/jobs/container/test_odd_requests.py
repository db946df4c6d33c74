"""Requests as backends in other languages write them, against a real database and broker."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from dispatcher.tasks import DELETE_LAB_POD
from jobs.container.consumer import Settlement
from jobs.container.run_task import run_task
from jobs.database import snapshot_rows
from jobs.handlers.context import Connections
from tests.support.cluster.fake_cluster import FakeCluster
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_task
from tests.support.labs.creates import add_pod, delivery_of, name_of


def create(connections: Connections, **changes: Any) -> Settlement:
    return run_task(connections, delivery_of(make_task(kwargs=create_kwargs(**changes))), {})


def test_a_lab_whose_id_is_a_text_starts(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    create(connections, lab_instance_id=str(lab), lab_id="7", student_id=42.0)
    assert database.lab(lab)["status"] == "RUNNING"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lab_id": 42, "student_id": 7}, "lab_id: 42 is not that of the lab in the database, which is 7"),
        ({"student_id": 43}, "student_id: 43 is not that of the lab in the database, which is 42"),
        ({"lab_id": None}, "lab_id: None is not allowed"),
    ],
    ids=["swapped", "another student", "null"],
)
def test_a_create_with_ids_that_are_not_the_rows_fails_its_lab(
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    lab: int,
    changes: dict[str, Any],
    said: str,
) -> None:
    assert create(connections, lab_instance_id=lab, **changes) is Settlement.DEAD_LETTER
    row = database.lab(lab)
    assert (row["status"], cluster.objects) == ("FAILED", {})
    assert said in row["error_message"]


def test_a_lab_that_an_id_only_means_is_failed_at_once(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    assert create(connections, lab_instance_id=f" {lab}") is Settlement.DEAD_LETTER
    assert database.lab(lab)["status"] == "FAILED"


@pytest.mark.parametrize("named", ["", "another lab's", 7])
def test_a_stop_is_done_whatever_pod_it_names(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int, named: Any
) -> None:
    add_pod(cluster, lab, name_of(lab))
    others = add_pod(cluster, lab + 1, name_of(lab + 1))
    kwargs = {
        "lab_instance_id": f" {lab}",
        "k8s_pod_name": others.rpartition("/")[2] if "'" in str(named) else named,
    }
    assert (
        run_task(connections, delivery_of(make_task(name=DELETE_LAB_POD, kwargs=kwargs)), {})
        is Settlement.ACK
    )
    assert (database.lab(lab)["status"], [*cluster.objects]) == ("STOPPED", [others])
    (row,) = database.rows("SELECT details -> 'passed_over' AS passed_over FROM task_ledger")
    assert row["passed_over"].keys() == {"lab_instance_id", "k8s_pod_name"}


@pytest.mark.parametrize(("option", "status"), [("expires", "FAILED"), ("eta", "RUNNING")])
def test_eta_and_expires_go_by_the_clock_of_the_database(
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    lab: int,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    status: str,
) -> None:
    # As for a container whose clock is an hour behind.
    monkeypatch.setattr(snapshot_rows, "_NOW", "SELECT now() + interval '1 hour'")
    at = datetime.now(timezone.utc) + timedelta(minutes=30)
    task = make_task(kwargs=create_kwargs(lab_instance_id=lab), **{option: at})
    assert run_task(connections, delivery_of(task), {}) is Settlement.ACK
    assert database.lab(lab)["status"] == status
