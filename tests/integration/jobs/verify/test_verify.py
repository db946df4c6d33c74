"""`autolabs verify` against a real database and a real broker; the cluster is scripted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest

import jobs.database.snapshot_rows
import jobs.verify.objects
import jobs.verify.snapshot
from dispatcher.broker import topology
from dispatcher.broker.publisher import Publisher
from dispatcher.tasks import CREATE_LAB_POD, DELETE_LAB_POD
from jobs.cluster.access import ClusterAccess
from jobs.cluster.client import Cluster
from jobs.config.naming import lab_labels
from jobs.database.lab_store import LabStore
from jobs.verify.snapshot import Sources, take_inventory
from tests.support.broker.rabbitmq import Broker
from tests.support.cluster.fake_cluster import FakeCluster
from tests.support.database.odd_rows import ODD_TIMES, old_rows_may_have_any_time
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_task
from tests.support.http_server import ScriptedServer
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
from tests.support.waiting import eventually_equal


def publish(broker: Broker, name: str, lab: int, **changes: object) -> str:
    kwargs = create_kwargs(lab_instance_id=lab) if name == CREATE_LAB_POD else {"lab_instance_id": lab}
    old = datetime.now(timezone.utc) - timedelta(hours=1)
    return broker.publish_task(name=name, kwargs=kwargs, published_at=old, **changes)


def test_a_platform_in_order_is_clean(
    verify: Verify, database: Database, broker: Broker, cluster: FakeCluster
) -> None:
    for _ in range(3):
        running(database, cluster)
    pending = database.add_lab()
    stopping = running(database, cluster, stop_requested_at=datetime.now(timezone.utc))
    failed = database.add_lab(status="FAILED")
    database.add_lab(status="STOPPED")
    age(database)
    for name, lab in ((CREATE_LAB_POD, pending), (DELETE_LAB_POD, stopping), (DELETE_LAB_POD, failed)):
        publish(broker, name, lab)
    broker.publish(topology.QUEUE_LOW, b"no task")
    found = verify()
    assert (found.code, found.report["clean"], found.report["differences"]) == (0, True, [])
    assert found.report["checked"] == {"rows": 6, "objects": 12, "messages": 4}
    assert found.report["information"] == [
        "what consumers hold was not counted: RABBITMQ_API_URL is not set",
        "in the queues, about no lab: 1 message",
    ]
    assert broker.depth(topology.QUEUE_HIGH) == 2
    code, text, _ = verify.text()
    assert code == 0
    assert text.splitlines()[-1].startswith("checked 6 rows, 12 objects, 4 messages in ")
    assert text.endswith("s: nothing differs\n")


def test_what_differs_is_said_and_nothing_is_touched(
    verify: Verify, database: Database, broker: Broker, cluster: FakeCluster
) -> None:
    lost = database.add_lab()
    gone = running(database, cluster)
    cluster.objects.pop(path_of("Pod", pod_name(gone)))
    orphan = database.add_lab(status="STOPPED", stopped_at=datetime.now(timezone.utc))
    add_objects(cluster, orphan, "Pod")
    age(database)
    objects = set(cluster.objects)
    for words in ((), ("--dry-run",), ("--repair", "--dry-run")):
        found = verify(*quick(*words))
        assert found.code == 1
        assert found.said() == [(lost, "request_lost"), (gone, "pod_gone"), (orphan, "orphan")]
    code, text, _ = verify.text(*quick())
    assert code == 1
    heading, first, second, third, note, where, summary = text.splitlines()
    assert heading.split() == ["LAB", "WHAT", "DIFFERS", "SINCE", "--repair", "WOULD"]
    assert f"{lost}" in first
    assert "the lab is PENDING, and no message or run is there to start it" in first
    assert "60 min   make the lab FAILED: its request was lost" in first
    assert f"Pod {pod_name(gone)}: the lab is RUNNING without its Pod" in second
    assert third.endswith("delete it")
    assert note.startswith("note: ")
    assert where.startswith(f"looked at database {database.url.rpartition('/')[2]} at ")
    assert where.endswith(f" vhost {broker.vhost}")
    assert "namespace labs" in where
    assert summary.endswith("s: 3 differences")
    assert set(cluster.objects) == objects
    assert database.ledger() == []


def test_repairs_leave_a_clean_platform(
    verify: Verify, database: Database, broker: Broker, cluster: FakeCluster
) -> None:
    fine = running(database, cluster)
    lost, gone, bare = database.add_lab(), running(database, cluster), running(database, cluster)
    cluster.objects.pop(path_of("Pod", pod_name(gone)))
    cluster.objects.pop(path_of("NetworkPolicy", pod_name(bare)))
    cluster.objects.pop(path_of("Service", pod_name(bare)))
    add_objects(cluster, lost, "Pod")
    stopping = running(database, cluster, stop_requested_at=datetime.now(timezone.utc))
    stopped = database.add_lab(status="STOPPED", stopped_at=datetime.now(timezone.utc))
    add_objects(cluster, 999)
    used_up_to(database, 999)
    add_objects(cluster, fine, "Pod", name=f"lab-instance-{fine}-second")
    age(database)
    message = publish(broker, CREATE_LAB_POD, stopped)
    found = verify(*quick("--repair"))
    assert found.code == 0, found.report
    assert found.report["clean"]
    rows = {lab: database.lab(lab) for lab in (fine, lost, gone, bare, stopping)}
    assert {lab: row["status"] for lab, row in rows.items()} == {
        fine: "RUNNING",
        lost: "FAILED",
        gone: "FAILED",
        bare: "FAILED",
        stopping: "RUNNING",
    }
    assert rows[lost]["error_message"] == "The request for this lab was lost. Please start it again."
    assert rows[gone]["connection_url"] is None
    assert cluster.names() == {pod_name(fine), pod_name(stopping)}
    notified = database.rows("SELECT lab_instance_id, cause, told FROM notifications ORDER BY id")
    assert {(row["lab_instance_id"], row["cause"], row["told"]) for row in notified} == {
        (lost, "request_lost", "admin"),
        (gone, "pod_gone", "admin"),
        (bare, "object_gone", "admin"),
    }
    delete = broker.take(topology.QUEUE_HIGH)
    assert delete.headers["task"] == DELETE_LAB_POD
    assert broker.is_empty()
    ledger = {row["details"]["object"]: row for row in database.ledger()}
    assert {(row["task_name"], row["outcome"]) for row in ledger.values()} == {
        ("autolabs.verify", "succeeded")
    }
    assert ledger[f"message {message}"]["details"]["task_name"] == CREATE_LAB_POD
    assert ledger[f"Pod {pod_name(gone)}"]["details"]["cause"] == "pod_gone"
    assert len({row["task_id"] for row in ledger.values()}) == len(ledger)
    # Our own test took the delete.
    database.rows("DELETE FROM lab_instances WHERE id = %s", stopping)
    again = verify(*quick("--repair"))
    assert again.said() == [(stopping, "orphan")] * 3
    assert verify(*quick()).code == 0


def test_nothing_of_somebody_else_is_touched_or_told(
    verify: Verify, database: Database, cluster: FakeCluster
) -> None:
    path = path_of("Pod", "theirs")
    foreign = lab_labels(77, 7, 42) | {"app.kubernetes.io/managed-by": "helm"}
    cluster.add(path, {"metadata": {"name": "theirs", "labels": foreign}})
    cluster.add(f"{path}-too", {"metadata": {"name": "theirs-too", "labels": {"lab_instance_id": "77"}}})
    found = verify(*quick("--repair", "--grace", "0"))
    assert (found.code, found.report["checked"]["objects"]) == (0, 0)
    assert cluster.names() == {"theirs", "theirs-too"}


def test_what_heals_between_the_looks_is_no_difference(
    verify: Verify,
    database: Database,
    broker: Broker,
    cluster: FakeCluster,
    between_looks: Actions,
) -> None:
    late, lost = database.add_lab(), database.add_lab()
    gone = running(database, cluster)
    cluster.objects.pop(path_of("Service", pod_name(gone)))
    age(database)
    between_looks += [
        lambda: publish(broker, CREATE_LAB_POD, late),
        lambda: add_objects(cluster, gone, "Service"),
    ]
    found = verify("--repair")
    assert found.said() == [(lost, "request_lost")]
    assert database.lab(late)["status"] == "PENDING"
    assert database.lab(gone)["status"] == "RUNNING"


def test_a_lab_that_changed_since_the_look_is_left_alone(
    verify: Verify,
    database: Database,
    cluster: FakeCluster,
    before_repairs: Actions,
) -> None:
    back, claimed, stopped, queued = running(database, cluster), *(database.add_lab() for _ in range(3))
    cluster.objects.pop(path_of("Pod", pod_name(back)))
    age(database)
    claim = (
        "INSERT INTO task_ledger (task_id, task_name, lab_instance_id, attempt, redelivered, queue,"
        " claimed_at, outcome) VALUES ('x', %s, %s, 1, false, 'q', now(), 'started')"
    )
    add = "INSERT INTO task_outbox (task_name, kwargs) VALUES (%s, jsonb_build_object('lab_instance_id', %s))"
    before_repairs += [
        lambda: add_objects(cluster, back, "Pod"),
        lambda: database.rows(claim, CREATE_LAB_POD, claimed),
        lambda: database.rows("UPDATE lab_instances SET stop_requested_at = now() WHERE id = %s", stopped),
        lambda: database.rows(add, CREATE_LAB_POD, queued),
    ]
    found = verify(*quick("--repair"))
    assert found.code == 1
    assert [one["done"] for one in found.report["differences"]] == 4 * [
        "left alone: it has changed since it was seen"
    ]
    statuses = [database.lab(lab)["status"] for lab in (back, claimed, stopped, queued)]
    assert statuses == ["RUNNING", "PENDING", "PENDING", "PENDING"]


def test_an_object_that_has_taken_an_orphans_name_stays(
    verify: Verify, database: Database, cluster: FakeCluster, before_repairs: Actions
) -> None:
    used_up_to(database, 999)
    add_objects(cluster, 999, "Pod")
    before_repairs.append(lambda: add_objects(cluster, 999, "Pod", uid="another"))
    verify(*quick("--repair"))
    assert cluster.names() == {pod_name(999)}
    assert cluster.deleted == []


def test_a_repair_that_fails_is_told_and_the_others_go_on(
    verify: Verify, database: Database, cluster: FakeCluster
) -> None:
    add_objects(cluster, 999, "Pod")
    lost = database.add_lab()
    used_up_to(database, 999)
    age(database)
    cluster.refuses_deletes = True
    found = verify(*quick("--repair"))
    assert found.code == 1
    assert [row["outcome"] for row in database.ledger() if row["lab_instance_id"] == 999] == ["failed"]
    assert found.done()[f"Pod {pod_name(999)}"].startswith("not repaired: DELETE ")
    assert database.lab(lost)["status"] == "FAILED"


def test_lists_and_rows_come_in_pages(
    verify: Verify,
    database: Database,
    cluster: FakeCluster,
    api_server: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs.verify.objects, "PAGE", 2)
    monkeypatch.setattr(jobs.database.snapshot_rows, "PAGE", 2)
    for _ in range(5):
        running(database, cluster)
    found = verify(*quick())
    assert (found.code, found.report["checked"]) == (0, {"rows": 5, "objects": 15, "messages": 0})
    lists = [request.path for request in api_server.requests]
    assert len(lists) == 9
    assert all("limit=2" in path for path in lists)


def test_a_lab_whose_message_a_consumer_holds_is_left_alone(
    verify: Verify, database: Database, broker: Broker, api_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBITMQ_API_URL", api_url)
    lab = database.add_lab()
    age(database)
    publish(broker, CREATE_LAB_POD, lab)
    channel = broker.channel()
    method, _, _ = channel.basic_get(topology.QUEUE_NORMAL)
    assert method is not None

    def unacked() -> int:
        """Return what the management plugin says, a few seconds late."""
        queue = broker.api.call("GET", f"/queues/{broker.vhost}/{topology.QUEUE_NORMAL}")
        return int(queue.get("messages_unacknowledged", 0))

    eventually_equal(unacked, 1)
    found = verify(*quick("--repair"))
    assert found.report["waiting"]["unacked"][topology.QUEUE_NORMAL] == 1
    assert (found.code, database.lab(lab)["status"]) == (0, "PENDING")
    held = "celery.lab_operations: consumers hold 1 message, with 0 runs under way"
    assert held in found.report["information"]
    channel.basic_ack(method.delivery_tag)
    eventually_equal(unacked, 0)
    assert verify(*quick("--repair")).said() == [(lab, "request_lost")]
    assert database.lab(lab)["status"] == "FAILED"


def test_a_task_for_later_is_not_lost(verify: Verify, database: Database, publisher: Publisher) -> None:
    lab = database.add_lab()
    age(database)
    eta = datetime.now(timezone.utc) + timedelta(hours=1)
    publisher.publish_task(make_task(kwargs=create_kwargs(lab_instance_id=lab), eta=eta))
    found = verify(*quick("--repair"))
    assert (found.code, found.report["waiting"]["delayed"]) == (0, 1)
    assert found.report["information"][-2:] == [
        "on the delay ladder: 1 message, not looked into",
        "from what nobody can read: 1 PENDING lab may be started, or not",
    ]
    assert database.lab(lab)["status"] == "PENDING"


def test_two_looks_at_once_miss_no_message(
    database: Database, broker: Broker, publisher: Publisher, api_server: ScriptedServer
) -> None:
    tasks = [make_task(kwargs=create_kwargs(lab_instance_id=database.add_lab())) for _ in range(200)]
    assert publisher.publish_tasks(tasks) == [None] * len(tasks)

    def look(number: int) -> int:
        labs = LabStore(database.url, application_name=f"test-verify-{number}")
        cluster = Cluster(ClusterAccess(api_server.url, ca_pem=""))
        seen = take_inventory(Sources(labs, cluster, "labs", broker.settings, progress=print))
        labs.close()
        return len(seen.queues.messages) if seen.queues else 0

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(look, range(3))) == [200, 200, 200]
    assert broker.depth(topology.QUEUE_NORMAL) == 200


def test_rows_with_odd_times_and_long_ids_hide_nothing(
    verify: Verify, database: Database, cluster: FakeCluster
) -> None:
    old_rows_may_have_any_time(database)
    for lab, moment in zip(range(2**63 - len(ODD_TIMES), 2**63), ODD_TIMES, strict=True):
        row = {"status": "RUNNING", "k8s_pod_name": pod_name(lab)}
        database.add_lab(id=lab, created_at=moment, updated_at=moment, expires_at=moment, **row)
        add_objects(cluster, lab)
    found = verify()
    assert (found.code, found.report["differences"]) == (0, [])
    assert found.report["checked"]["objects"] == 3 * len(ODD_TIMES)
