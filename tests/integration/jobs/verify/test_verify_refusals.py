"""`autolabs verify --repair` where a repair would harm: it is refused, or left to a person."""

from __future__ import annotations

import pytest

import jobs.verify.snapshot
from dispatcher.tasks import CREATE_LAB_POD
from tests.support.cluster.fake_cluster import FakeCluster
from tests.support.database.postgres import Database
from tests.support.labs.verifying import (
    Actions,
    Verify,
    add_objects,
    age,
    path_of,
    pod_name,
    quick,
    running,
    used_up_to,
)


def test_much_is_not_repaired_at_once(verify: Verify, database: Database, cluster: FakeCluster) -> None:
    labs = [database.add_lab() for _ in range(11)]
    age(database)
    found = verify(*quick("--repair"))
    assert (found.code, len(found.said())) == (1, 11)
    assert found.report["refused"] == "11 labs would be repaired; at most 10 of 11 live ones are at a time"
    assert {database.lab(lab)["status"] for lab in labs} == {"PENDING"}
    code, text, _ = verify.text(*quick("--repair"))
    assert code == 1
    assert "nothing was repaired: 11 labs would be repaired" in text
    assert verify(*quick("--repair", "--force")).code == 0
    assert {database.lab(lab)["status"] for lab in labs} == {"FAILED"}


def test_another_cluster_fails_nobody(verify: Verify, database: Database, cluster: FakeCluster) -> None:
    labs = [running(database, cluster) for _ in range(3)]
    cluster.objects.clear()
    found = verify(*quick("--repair"))
    assert found.code == 1
    assert "none of the 3 RUNNING labs has a Pod" in found.report["refused"]
    assert {database.lab(lab)["status"] for lab in labs} == {"RUNNING"}


def test_the_cluster_of_nobody_fails_not_even_one_lab(
    verify: Verify, database: Database, cluster: FakeCluster
) -> None:
    lab = running(database, cluster)
    cluster.objects.clear()
    found = verify(*quick("--repair"))
    assert "the RUNNING lab has not a Pod" in found.report["refused"]
    assert database.lab(lab)["status"] == "RUNNING"


def test_a_namespace_that_is_missing_is_not_clean(verify: Verify, cluster: FakeCluster) -> None:
    cluster.namespaces.clear()
    code, _, errors = verify.text(*quick())
    assert (code, "there is no namespace labs" in errors) == (3, True)


def test_labs_of_another_database_with_the_same_ids_lose_nothing(
    verify: Verify, database: Database, cluster: FakeCluster
) -> None:
    for lab in (
        database.add_lab(status="STOPPED", lab_id=8),
        database.add_lab(status="FAILED", student_id=1),
    ):
        add_objects(cluster, lab)
    add_objects(cluster, 999)
    age(database)
    found = verify(*quick("--repair"))
    assert {kind for _, kind in found.said()} == {"wrong_labels", "orphan"}
    assert "this may be another database" in found.report["refused"]
    verify(*quick("--repair", "--force"))
    assert len(cluster.objects) == 9


def test_a_database_that_cannot_be_written_has_nothing_repaired(
    verify: Verify, database: Database, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_objects(cluster, 1)
    used_up_to(database, 1)
    read_only = f"{database.url}?options=-c%20default_transaction_read_only%3Don"
    monkeypatch.setenv("DATABASE_URL", read_only)
    found = verify(*quick("--repair", "--force"))
    assert (found.code, found.report["refused"]) == (1, "the database is read-only")
    assert len(cluster.objects) == 3


def test_an_object_that_the_ledger_cannot_tell_of_stays(
    verify: Verify, database: Database, cluster: FakeCluster, before_repairs: Actions
) -> None:
    add_objects(cluster, 1, "Pod")
    used_up_to(database, 1)
    before_repairs.append(lambda: database.rows("ALTER TABLE task_ledger RENAME TO elsewhere"))
    assert verify(*quick("--repair")).code == 1
    assert len(cluster.objects) == 1


def test_a_lab_without_its_service_goes_on_unless_forced(
    verify: Verify, database: Database, cluster: FakeCluster
) -> None:
    lab = running(database, cluster)
    cluster.objects.pop(path_of("Service", pod_name(lab)))
    found = verify(*quick("--repair"))
    assert (found.code, database.lab(lab)["status"]) == (1, "RUNNING")
    assert verify(*quick("--repair", "--force")).code == 0
    assert database.lab(lab)["status"] == "FAILED"


def test_another_database_deletes_nothing(verify: Verify, cluster: FakeCluster) -> None:
    for lab in (1, 2, 3):
        add_objects(cluster, lab)
    found = verify(*quick("--repair"))
    assert found.code == 1
    assert "none of the 3 labs with objects has a row" in found.report["refused"]
    assert len(cluster.objects) == 9


def test_without_figures_of_consumers_a_lost_request_is_repaired_after_a_quiet_time_only(
    verify: Verify,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    between_looks: Actions,
) -> None:
    monkeypatch.setattr(jobs.verify.snapshot, "QUIET_HEARTBEATS", 4)
    lab = database.add_lab()
    age(database)
    found = verify("--repair", "--settle", "119")
    assert (found.code, found.said()) == (1, [(lab, "request_lost")])
    assert "RABBITMQ_API_URL or --settle 120 would tell" in found.report["differences"][0]["is"]
    assert database.lab(lab)["status"] == "PENDING"
    assert verify("--repair", "--settle", "120").code == 0
    assert database.lab(lab)["status"] == "FAILED"


def test_a_run_that_began_before_the_look_keeps_its_lab(
    verify: Verify, database: Database, before_repairs: Actions
) -> None:
    lab = database.add_lab()
    age(database)
    claim = (
        "INSERT INTO task_ledger (task_id, task_name, lab_instance_id, attempt, redelivered, queue,"
        " claimed_at, outcome) VALUES ('x', %s, %s, 1, false, 'q', now() - interval '1 minute', 'started')"
    )
    before_repairs.append(lambda: database.rows(claim, CREATE_LAB_POD, lab))
    assert verify(*quick("--repair")).code == 1
    assert database.lab(lab)["status"] == "PENDING"
