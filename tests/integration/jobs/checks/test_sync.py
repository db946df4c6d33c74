"""celery_workers.sync_lab_status: rows and objects are compared, and what differs is mended or told of."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from dispatcher.broker import topology
from dispatcher.message.envelope import new_task_id
from dispatcher.tasks import SYNC_LAB_STATUS
from jobs.checks import sync
from jobs.config.stored import LIFE_SETTINGS
from jobs.database.lab_store import LabStore
from jobs.database.ledger import Ending
from jobs.errors import JobError
from jobs.failures import Failure
from jobs.handlers.context import Connections
from tests.support.broker.rabbitmq import Broker
from tests.support.cluster.fake_cluster import FakeCluster
from tests.support.database.odd_rows import ODD_TIMES, old_rows_may_have_any_time
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_record
from tests.support.labs.syncing import Sync, status, waiting
from tests.support.labs.verifying import Actions, add_objects, age, path_of, pod_name, running, used_up_to
from tests.support.store import Bucket
from tests.support.waiting import HANG_S


def repairs(database: Database) -> dict[int, str]:
    rows = database.rows("SELECT * FROM task_ledger WHERE lab_instance_id IS NOT NULL ORDER BY id")
    assert {row["task_name"] for row in rows} <= {SYNC_LAB_STATUS}
    return {row["lab_instance_id"]: row["details"]["difference"] for row in rows}


def test_a_platform_in_order_is_left_alone(synced: Sync, database: Database, cluster: FakeCluster) -> None:
    labs = [running(database, cluster) for _ in range(3)]
    database.add_lab()
    database.add_lab(status="STOPPED")
    expected = {"rows": 4, "objects": 9, "undecided": 0, "found": {}, "repaired": {}, "left": 0}
    assert synced() == expected
    assert cluster.deleted == []
    assert [status(database, lab) for lab in labs] == ["RUNNING"] * 3


def test_both_directions_are_repaired_and_in_the_ledger(
    synced: Sync, database: Database, cluster: FakeCluster, broker: Broker
) -> None:
    labs = [running(database, cluster) for _ in range(5)]
    fine, gone, bare, deaf, stray = labs
    cluster.objects.pop(path_of("Pod", pod_name(gone)))
    cluster.objects.pop(path_of("NetworkPolicy", pod_name(bare)))
    cluster.objects.pop(path_of("Service", pod_name(deaf)))
    add_objects(cluster, stray, "Pod", name=f"lab-instance-{stray}-second")
    over = database.add_lab(status="STOPPED", stopped_at=datetime.now(timezone.utc))
    add_objects(cluster, over, "Service", "NetworkPolicy")
    add_objects(cluster, 999, "Pod")
    used_up_to(database, 999)
    stopping = running(database, cluster, stop_requested_at=datetime.now(timezone.utc))
    lost = database.add_lab()
    age(database)
    result = synced()
    assert result["found"] == {
        "orphan": 3,
        "pod_gone": 1,
        "object_gone": 2,
        "second_object": 1,
        "stop_lost": 1,
        "request_lost": 1,
    }
    assert result["repaired"] == {**result["found"], "object_gone": 1}
    assert result["left"] == 1
    changed = {lab: status(database, lab) for lab in (*labs, stopping, lost)}
    assert changed == {
        **dict.fromkeys((fine, deaf, stray, stopping), "RUNNING"),
        **dict.fromkeys((gone, bare, lost), "FAILED"),
    }
    kept = {name for lab in (fine, deaf, stray, stopping) for name in [pod_name(lab)]}
    assert cluster.names() == kept
    assert repairs(database) == {
        gone: "pod_gone",
        bare: "object_gone",
        stray: "second_object",
        over: "orphan",
        999: "orphan",
        stopping: "stop_lost",
        lost: "request_lost",
    }
    assert waiting(broker) == {topology.QUEUE_HIGH: 1}
    broker.take(topology.QUEUE_HIGH)
    again = synced()
    assert (again["found"], again["left"]) == ({"object_gone": 1}, 1)


def test_a_lab_without_its_service_is_told_of_once(
    synced: Sync, database: Database, cluster: FakeCluster
) -> None:
    deaf, _ = running(database, cluster), running(database, cluster)
    cluster.objects.pop(path_of("Service", pod_name(deaf)))
    age(database)
    synced(dry_run=True)
    assert database.rows("SELECT * FROM notifications") == []
    for _ in range(2):
        assert (synced()["left"], status(database, deaf)) == (1, "RUNNING")
    (told,) = database.rows("SELECT * FROM notifications")
    assert (told["event_type"], told["cause"], told["told"]) == ("lab.unreachable", "service_gone", "admin")
    assert (told["lab_instance_id"], told["facts"]) == (deaf, {"object": f"Service {pod_name(deaf)}"})


def test_a_lab_that_is_started_again_does_not_wait_for_the_sweep(
    synced: Sync,
    database: Database,
    cluster: FakeCluster,
    connections: Connections,
    bucket: Bucket,
    broker: Broker,
) -> None:
    bucket.put(LIFE_SETTINGS, b"restart_causes: [pod_gone]\n")
    gone, _ = running(database, cluster), running(database, cluster)
    record = make_record(gone, details={"request": create_kwargs(lab_instance_id=gone)})
    connections.labs.record(record, Ending("succeeded"))
    cluster.objects.pop(path_of("Pod", pod_name(gone)))
    lost = database.add_lab()
    age(database)
    assert synced()["repaired"] == {"pod_gone": 1, "request_lost": 1}
    assert (status(database, gone), status(database, lost)) == ("FAILED", "FAILED")
    (again,) = database.rows("SELECT * FROM lab_instances WHERE restart_of = %s", gone)
    assert broker.take(topology.QUEUE_NORMAL).headers["id"] == again["celery_task_id"]
    assert database.rows("SELECT * FROM task_outbox") == []


def test_what_is_left_is_a_warning(
    synced: Sync, database: Database, cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    lab = running(database, cluster)
    cluster.objects.pop(path_of("Service", pod_name(lab)))
    age(database)
    assert synced()["left"] == 1
    (line,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert line.getMessage() == (
        f"lab {lab}, Service {pod_name(lab)}: the lab is RUNNING without its Service"
    )
    assert vars(line)["lab_instance_id"] == lab


@pytest.mark.parametrize(("ended_s", "repaired"), [(60, {}), (240, {"pod_ended": 1})])
def test_a_pod_that_has_just_ended_is_left_to_the_health_check(
    synced: Sync,
    database: Database,
    cluster: FakeCluster,
    caplog: pytest.LogCaptureFixture,
    ended_s: int,
    repaired: dict[str, int],
) -> None:
    lab = running(database, cluster)
    since = (datetime.now(timezone.utc) - timedelta(seconds=ended_s)).isoformat()
    ready = {"type": "Ready", "status": "False", "lastTransitionTime": since}
    pod = cluster.objects[path_of("Pod", pod_name(lab))]
    pod["status"] = {"phase": "Failed", "reason": "Evicted", "conditions": [ready]}
    age(database)
    result = synced()
    assert (result["found"], result["repaired"]) == ({"pod_ended": 1}, repaired)
    assert bool(repaired) is (status(database, lab) == "FAILED")
    assert bool(repaired) is not ("is over: Failed Evicted" in caplog.text)


def test_a_pile_of_differences_does_not_fill_the_log(
    synced: Sync, database: Database, cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(sync.MAX_LINES + 5):
        cluster.objects.pop(path_of("Service", pod_name(running(database, cluster))))
    age(database)
    assert synced()["left"] == sync.MAX_LINES + 5
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert (len(lines), lines[-1]) == (sync.MAX_LINES + 1, "and 5 more")


def test_objects_of_others_are_not_touched(synced: Sync, database: Database, cluster: FakeCluster) -> None:
    fine = running(database, cluster)
    theirs = {"app.kubernetes.io/managed-by": "helm", "lab_instance_id": "5"}
    for name, labels in (("theirs", theirs), ("bare", {})):
        add_objects(cluster, fine, "Pod", "Service", name=name, labels=labels)
    before = {path: item["metadata"]["resourceVersion"] for path, item in cluster.objects.items()}
    used_up_to(database, 999)
    age(database)
    assert synced()["found"] == {}
    after = {path: item["metadata"]["resourceVersion"] for path, item in cluster.objects.items()}
    assert after == before


def lose(database: Database, cluster: FakeCluster, count: int) -> list[int]:
    labs = [running(database, cluster) for _ in range(count)]
    for lab in labs[1:]:
        cluster.objects.pop(path_of("Pod", pod_name(lab)))
    age(database)
    return labs[1:]


def test_it_refuses_to_repair_too_many_labs_at_once(
    synced: Sync, database: Database, cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    gone = lose(database, cluster, 12)
    with pytest.raises(JobError) as raised:
        synced()
    assert raised.value.failure is Failure.TOO_MANY_AT_ONCE
    assert "11 labs would be repaired; at most 10 of 12" in raised.value.sentence
    assert {status(database, lab) for lab in gone} == {"RUNNING"}
    assert caplog.text.count("is RUNNING without its Pod") == 11
    with pytest.raises(JobError):
        synced()
    (news,) = database.rows("SELECT event_type, told, message FROM notifications")
    assert (news["event_type"], news["told"]) == ("platform.sync_refused", "admin")
    assert news["message"] == raised.value.sentence
    dry = synced(dry_run=True)
    assert dry["would_repair"] == {"pod_gone": 11}
    assert "at most 10" in dry["refused"]
    assert synced(force=True)["repaired"] == {"pod_gone": 11}
    assert {status(database, lab) for lab in gone} == {"FAILED"}


def test_how_many_are_too_many_is_a_setting(
    synced: Sync, database: Database, cluster: FakeCluster, bucket: Bucket
) -> None:
    lose(database, cluster, 3)
    bucket.put(LIFE_SETTINGS, b"fail_always: 1\nfail_max_share: 0.1\n")
    with pytest.raises(JobError, match="2 labs would be repaired; at most 1 of 3"):
        synced()


@pytest.mark.parametrize("ahead_s", [-90, 90, 86_400 * 365])
def test_it_repairs_nothing_by_clocks_that_differ(
    synced: Sync, database: Database, cluster: FakeCluster, ahead_s: float
) -> None:
    (gone,) = lose(database, cluster, 2)
    cluster.ahead_s = ahead_s
    with pytest.raises(JobError, match="at most 60 s are allowed, half of the grace age") as raised:
        synced()
    assert raised.value.failure is Failure.CLOCKS_DIFFER
    assert "s apart" in synced(dry_run=True)["refused"]
    assert status(database, gone) == "RUNNING"
    cluster.ahead_s = 20
    assert synced()["repaired"] == {"pod_gone": 1}


def test_the_grace_age_is_a_setting(
    synced: Sync, database: Database, cluster: FakeCluster, bucket: Bucket
) -> None:
    used_up_to(database, 999)
    add_objects(cluster, 999, "Pod", age_s=600)
    bucket.put(LIFE_SETTINGS, b"orphan_grace_s: 900\n")
    assert synced()["found"] == {}
    bucket.put(LIFE_SETTINGS, b"orphan_grace_s: 300\n")
    assert synced()["repaired"] == {"orphan": 1}


def test_a_dry_run_changes_nothing_and_says_each_difference(
    synced: Sync, database: Database, cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    gone = lose(database, cluster, 3)
    lost = database.add_lab()
    age(database)
    before = dict(cluster.objects)
    assert synced(dry_run=True)["would_repair"] == {"pod_gone": 2, "request_lost": 1}
    assert {status(database, lab) for lab in gone} == {"RUNNING"}
    assert (status(database, lost), cluster.objects) == ("PENDING", before)
    assert repairs(database) == {}
    assert all(f"lab {lab}, " in caplog.text for lab in (*gone, lost))


def test_of_two_at_once_one_does_nothing(
    synced: Sync, database: Database, cluster: FakeCluster, connections: Connections, between_looks: Actions
) -> None:
    (gone,) = lose(database, cluster, 2)
    theirs: list[dict[str, Any]] = []

    def another() -> None:
        other = Connections(connections.settings)
        other.cluster = connections.cluster
        theirs.append(Sync(other)())
        other.labs.close()

    between_looks.append(another)
    assert synced()["repaired"] == {"pod_gone": 1}
    assert theirs == [{"busy": True}]
    assert list(repairs(database)) == [gone]
    assert "busy" not in synced()


def test_without_a_broker_rows_and_objects_are_compared_all_the_same(
    connections: Connections, synced: Sync, database: Database, cluster: FakeCluster
) -> None:
    (gone,) = lose(database, cluster, 2)
    lost = database.add_lab()
    age(database)
    away = replace(connections.settings.broker, url="amqp://guest:guest@127.0.0.1:9/", connect_timeout_s=0.5)
    connections.settings = replace(connections.settings, broker=away)
    assert synced()["repaired"] == {"pod_gone": 1}
    assert (status(database, gone), status(database, lost)) == ("FAILED", "PENDING")


def test_creates_and_deletes_meanwhile_are_not_mistaken_for_drift(
    synced: Sync,
    database: Database,
    cluster: FakeCluster,
    connections: Connections,
    between_looks: Actions,
) -> None:
    """Rows change between the looks at objects and at rows, as they do under a real platform."""
    done, stopped = threading.Event(), threading.Event()
    store = LabStore(connections.settings.database_url, application_name="test-churn")

    def churn() -> None:
        while not done.is_set():
            lab = database.add_lab()
            record = make_record(lab, task_id=new_task_id())
            store.begin(record)
            add_objects(cluster, lab, age_s=0)
            store.mark_running(record, lab, pod_name=pod_name(lab), connection_url="http://x/")
            for kind in ("Pod", "Service", "NetworkPolicy"):
                cluster.objects.pop(path_of(kind, pod_name(lab)))
            store.mark_stopped(make_record(lab), lab, deleted=3)
            stopped.set()

    def wait_for_a_stop() -> None:
        """A delete takes less than the pause between two looks, on however slow a machine."""
        stopped.clear()
        assert stopped.wait(HANG_S)

    between_looks.append(wait_for_a_stop)
    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(10):
            assert synced()["repaired"] == {}
    finally:
        done.set()
        thread.join()
        store.close()
    assert database.rows("SELECT * FROM lab_instances WHERE status = 'FAILED'") == []


def test_labs_with_ids_of_19_digits_are_like_any_other(
    synced: Sync, database: Database, cluster: FakeCluster
) -> None:
    labs = [running(database, cluster) for _ in range(2)]
    for lab, other in zip(labs, (2**63 - 1, 10**18), strict=True):
        cluster.objects.pop(path_of("Pod", pod_name(lab)))
        cluster.objects.pop(path_of("Service", pod_name(lab)))
        cluster.objects.pop(path_of("NetworkPolicy", pod_name(lab)))
        statement = "UPDATE lab_instances SET id = %s, k8s_pod_name = %s WHERE id = %s"
        database.rows(statement, other, pod_name(other), lab)
        add_objects(cluster, other)
    assert synced() == {"rows": 2, "objects": 6, "undecided": 0, "found": {}, "repaired": {}, "left": 0}


def test_rows_with_odd_times_are_named_and_stop_no_other_lab(
    synced: Sync, database: Database, cluster: FakeCluster
) -> None:
    old_rows_may_have_any_time(database)
    odd = [running(database, cluster) for _ in ODD_TIMES]
    for lab, moment in zip(odd, ODD_TIMES, strict=True):
        statement = "UPDATE lab_instances SET created_at = %s, updated_at = %s WHERE id = %s"
        database.rows(statement, moment, moment, lab)
    gone = running(database, cluster)
    cluster.objects.pop(path_of("NetworkPolicy", pod_name(gone)))
    result = synced()
    assert (result["odd_rows"], result["found"], result["left"]) == (odd, {"object_gone": 1}, 0)
