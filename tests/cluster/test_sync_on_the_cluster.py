"""celery_workers.sync_lab_status on the real cluster: drift made by hand is mended or told of in one run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dispatcher import BrokerSettings, Dispatcher
from dispatcher.broker import topology
from dispatcher.tasks import SYNC_LAB_STATUS
from jobs.config.stored import LIFE_SETTINGS
from tests.support.clearing import clear
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.containers.container import Process
from tests.support.labs.own_labs import HANGS_S, OwnLabs
from tests.support.labs.verifying import age, used_up_to
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(3 * HANGS_S)
#: The least that the settings allow; rows are made older by hand, objects grow older by themselves.
GRACE_S = 30
#: The least as well: four of them are waited for before a request is lost.
HEARTBEAT_S = 5


class SyncedLabs(OwnLabs):
    def sync(self, *options: str) -> dict[str, Any]:
        """Run the CronJob's command; return the last line of its log, with the result."""
        process = self.start_sync(*options)
        assert process.wait(HANGS_S) == 0, process.log.read_text()
        return self.result_of(process)

    def start_sync(self, *options: str) -> Process:
        return self.platform.containers.start(module=" ".join(("cronjobs", "sync", *options)))

    @staticmethod
    def result_of(process: Process) -> dict[str, Any]:
        (line,) = [line for line in process.lines() if line.get("action") == "periodic_done"]
        return line

    def foreign(self) -> None:
        """Make objects of somebody else among the labs; they stay until `remove_foreign`."""
        theirs = {"app.kubernetes.io/managed-by": "helm", "lab_instance_id": "999998"}
        port = {"ports": [{"port": 80}], "selector": {"app": "theirs"}}
        policy = {"podSelector": {"matchLabels": {"app": "theirs"}}}
        for name, labels in (("theirs", theirs), ("unlabelled", {})):
            for api, kind, spec in (
                ("v1", "Service", port),
                ("networking.k8s.io/v1", "NetworkPolicy", policy),
            ):
                metadata = {"name": name, "labels": labels}
                manifest = {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}
                self.kubectl("create", "--filename=-", stdin=manifest)

    def remove_foreign(self) -> None:
        names = ("theirs", "unlabelled")
        self.kubectl("delete", "services,networkpolicies", *names, "--ignore-not-found")

    def versions(self, *names: str) -> dict[str, object]:
        """Return kind/name -> what changes when somebody touches it; the kubelet writes Pods' status."""
        items = json.loads(self.kubectl("get", "pods,services,networkpolicies", "--output=json"))["items"]
        found: dict[str, object] = {}
        for item in items:
            metadata = item["metadata"]
            if metadata["name"] in names:
                pod = (metadata.get("labels"), metadata.get("deletionTimestamp"), item["spec"])
                touched = pod if item["kind"] == "Pod" else metadata["resourceVersion"]
                found[f"{item['kind']}/{metadata['name']}"] = (metadata["uid"], touched)
        return found


@pytest.fixture
def own(own_platform: OwnPlatform) -> Iterator[SyncedLabs]:
    own_platform.bucket.put(LIFE_SETTINGS, f"orphan_grace_s: {GRACE_S}\n".encode())
    own_platform.containers.environ["AMQP_HEARTBEAT_S"] = str(HEARTBEAT_S)
    broker = BrokerSettings(own_platform.broker.url, heartbeat_s=HEARTBEAT_S)
    with Dispatcher(settings=broker) as dispatcher:
        own = SyncedLabs(own_platform, dispatcher)
        yield own
    own.remove_foreign()
    clear(own_platform)


def test_all_drift_is_mended_or_told_of_in_one_run_and_foreign_objects_stay(own: SyncedLabs) -> None:
    database = own.platform.database
    fine, no_row = own.create(), own.create()
    # Before the others are made: these have to be older than the grace age when the sync comes.
    own.foreign()
    own.stray("theirs", fine, **{"app.kubernetes.io/managed-by": "helm"})
    own.stray("lab-instance-999999-stray", fine, lab_instance_id="999999")
    own.stray(f"lab-instance-{fine}-stray", fine)
    no_pod, no_service, no_policy, not_stopped, over = others = [own.create() for _ in range(5)]
    names = {lab: own.name(lab) for lab in (fine, no_row, *others)}
    used_up_to(database, 999_999)
    own.kubectl("delete", "pod", names[no_pod], "--grace-period=1", "--wait=true")
    specs = own.specs_beside(no_service), own.specs_beside(no_policy)
    own.kubectl("delete", "service", names[no_service])
    own.kubectl("delete", "networkpolicy", names[no_policy])
    # A Service and a NetworkPolicy without their Pod, of a lab that is over.
    metadata = {"ownerReferences": None}
    for kind in ("service", "networkpolicy"):
        own.kubectl(
            "patch", kind, names[over], "--type=merge", f"--patch={json.dumps({'metadata': metadata})}"
        )
    own.kubectl("delete", "pod", names[over], "--grace-period=1", "--wait=true")
    database.rows("UPDATE lab_instances SET status = 'STOPPED', stopped_at = now() WHERE id = %s", over)
    database.rows("DELETE FROM lab_instances WHERE id = %s", no_row)
    database.rows("UPDATE lab_instances SET stop_requested_at = now() WHERE id = %s", not_stopped)
    lost = database.add_lab()
    age(database, created=[lost])
    expected = {
        "orphan": 6,
        "second_object": 1,
        "pod_gone": 1,
        "object_gone": 2,
        "stop_lost": 1,
        "request_lost": 1,
    }
    eventually(
        lambda: own.sync("--dry-run")["found"] == expected, HANGS_S, what="objects older than the grace age"
    )
    before = own.versions(names[fine], "theirs", "unlabelled")
    synced = own.start_sync()
    assert synced.wait(HANGS_S) == 0, synced.log.read_text()
    result = own.result_of(synced)
    (waited,) = [line for line in synced.lines() if line.get("action") == "waits"]
    assert (waited["seconds"], waited["labs"]) == (4 * HEARTBEAT_S, 1)
    assert (result["found"], result["repaired"], result["left"]) == (expected, expected, 0), result
    failed = {lab: own.status(lab) for lab in (no_pod, lost)}
    assert failed == dict.fromkeys((no_pod, lost), "FAILED")
    assert [own.status(lab) for lab in (fine, no_service, no_policy)] == ["RUNNING"] * 3
    # As it was, at the address that the student has.
    assert (own.specs_beside(no_service), own.specs_beside(no_policy)) == specs
    own.wait_answers(no_service)
    own.serve(topology.QUEUE_HIGH)
    assert own.status(not_stopped) == "STOPPED"
    own.wait_gone(no_pod, no_row, not_stopped, over, 999_999)
    eventually(lambda: len(own.names_of(fine)) == 4, HANGS_S, what="the stray Pod gone")
    assert len(before) == 8
    assert own.versions(names[fine], "theirs", "unlabelled") == before
    ledger = database.rows("SELECT * FROM task_ledger WHERE task_name = %s ORDER BY id", SYNC_LAB_STATUS)
    assert {row["lab_instance_id"] for row in ledger if row["lab_instance_id"]} == {
        *(no_pod, no_row, no_policy, no_service, not_stopped, over, 999_999, lost, fine)
    }
    (run,) = [row for row in ledger if "repaired" in row["details"].get("result", {})]
    assert run["details"]["result"]["found"] == expected
    own.kubectl("delete", "pod", "theirs", "--grace-period=1", "--wait=false")
    assert own.sync()["found"] == {}
    own.delete(no_service)
    own.delete(no_policy)
    own.delete(fine)


def test_as_a_message_and_two_at_once(own: SyncedLabs) -> None:
    lab = own.create()
    own.kubectl("delete", "pod", own.name(lab), "--grace-period=1", "--wait=true")
    for _ in range(2):
        own.platform.broker.publish_task(name=SYNC_LAB_STATUS, kwargs={})
    both = [own.platform.containers.start(queue=topology.QUEUE_LOW) for _ in range(2)]
    assert [process.wait(HANGS_S) for process in both] == [0, 0]
    results = [own.result_of(process) for process in both]
    assert [result["repaired"] for result in results if result.get("repaired")] == [{"pod_gone": 1}]
    assert own.status(lab) == "FAILED"
    assert own.platform.broker.is_empty()
    own.wait_gone(lab)


def test_labs_that_are_made_and_stopped_meanwhile_come_to_no_harm(own: SyncedLabs) -> None:
    labs = [own.ask_for() for _ in range(10)]
    done = threading.Event()

    def live() -> None:
        try:
            for lab in labs:
                own.serve(topology.QUEUE_NORMAL)
                if lab % 2:
                    own.dispatcher.delete_lab(lab_instance_id=lab, force=True)
                    own.serve(topology.QUEUE_HIGH)
        finally:
            done.set()

    thread = threading.Thread(target=live)
    thread.start()
    results = []
    try:
        while not done.is_set():
            results.append(own.sync())
    finally:
        thread.join()
    assert len(results) >= 3
    assert [result["repaired"] for result in results] == [{}] * len(results)
    assert {lab: own.status(lab) for lab in labs} == {
        lab: "STOPPED" if lab % 2 else "RUNNING" for lab in labs
    }
    for lab in labs:
        if lab % 2 == 0:
            own.delete(lab)
