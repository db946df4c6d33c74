"""Labs that break on the real cluster are found by the next health check, each with its cause."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dispatcher.tasks import CREATE_LAB_POD, DELETE_LAB_POD
from dispatcher.topology import QUEUE_HIGH
from jobs.failures import Failure
from tests.support.breakable_labs import BreakableLabs
from tests.support.failing_labs import operators_pod
from tests.support.fake_nodes import FakeNodes
from tests.support.many_labs import lab_manifests
from tests.support.own_namespace import OwnNamespace
from tests.support.own_platform import OwnPlatform
from tests.support.waiting import eventually, eventually_equal

#: A node is away 50 s after its last word, and kwok may have to be built.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def module_labs(own_platform: OwnPlatform) -> BreakableLabs:
    labs = BreakableLabs(own_platform)
    # One that nothing happens to: where no lab has a Pod, no check believes it.
    labs.start()
    return labs


@pytest.fixture
def labs(module_labs: BreakableLabs) -> BreakableLabs:
    module_labs.set()
    return module_labs


def test_a_deleted_and_an_evicted_pod_are_found_by_a_message(labs: BreakableLabs) -> None:
    deleted, evicted = labs.start(2)
    namespace = labs.platform.namespace
    namespace.kubectl("delete", "pod", labs.name(deleted), "--wait=false")
    metadata = {"name": labs.name(evicted), "namespace": namespace.name}
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    path = f"{namespace.collections['Pod']}/{labs.name(evicted)}/eviction"
    namespace.kubectl("create", "--raw", path, "--filename=-", stdin=eviction)
    for lab in (deleted, evicted):
        labs.wait_gone(lab)
    result = labs.check_by_message()
    assert (result["causes"], result["failed"], result["ready"]) == ({"pod_gone": 2}, 2, 1)
    assert [labs.cause(lab) for lab in (deleted, evicted)] == ["pod_gone", "pod_gone"]


def test_a_program_that_fills_its_disk_is_evicted_and_found(labs: BreakableLabs) -> None:
    (lab,) = labs.start()
    labs.tell(lab, "fill")
    eventually_equal(lambda: labs.pod(lab)["status"].get("reason"), "Evicted", 120)
    assert labs.check()["causes"] == {"out_of_disk": 1}
    assert labs.cause(lab) == "out_of_disk"
    assert 'Usage of EmptyDir volume "tmp" exceeds' in labs.run_of(lab)["details"]["evidence"]


def test_programs_that_end_again_and_again_are_found(labs: BreakableLabs) -> None:
    eats, crashes = labs.start(2)
    labs.set(crash_limit=2)
    labs.tell(eats, "eat")
    labs.tell(crashes, "crash")
    for lab in (eats, crashes):
        eventually(lambda lab=lab: loops(labs, lab), 120, what=f"lab {lab} loops")  # type: ignore[misc]
    causes = labs.check()["causes"]
    assert causes == {Failure.OUT_OF_MEMORY.cause: 1, Failure.PROGRAM_CRASHES.cause: 1}
    assert labs.cause(eats) == "out_of_memory"
    assert labs.cause(crashes) == "program_crashes"
    (container,) = labs.run_of(crashes)["details"]["seen"]["containers"]
    assert (container["exit_code"], container["restarts"] >= 2) == (3, True)


def loops(labs: BreakableLabs, lab: int) -> bool:
    container = labs.container(lab)
    waiting = container["state"].get("waiting", {})
    return bool(container["restartCount"] >= 2 and waiting.get("reason") == "CrashLoopBackOff")


def test_a_lab_that_ran_out_of_memory_once_goes_on_and_its_teacher_is_told(labs: BreakableLabs) -> None:
    (lab,) = labs.start()
    labs.tell(lab, "eat-once")
    eventually(lambda: labs.container(lab)["restartCount"] == 1, 60, what="ended once")
    eventually_equal(lambda: labs.ready(lab), "True", 60)
    for _ in range(2):
        found = labs.check()
        assert (found["failed"], found["ran_out_of_memory"]) == (0, 1)
    told = labs.platform.database.rows(
        "SELECT event_type, told FROM notifications WHERE lab_instance_id = %s", lab
    )
    assert told == [{"event_type": "lab.out_of_memory", "told": "teacher"}]
    labs.platform.namespace.kubectl("delete", "pod", labs.name(lab), "--grace-period=0", "--force")
    assert labs.check()["causes"] == {"pod_gone": 1}


def test_a_program_that_does_not_answer_any_more_is_found_after_the_limit(labs: BreakableLabs) -> None:
    (lab,) = labs.start()
    labs.tell(lab, "silent")
    eventually_equal(lambda: labs.ready(lab), "False", 60)
    found = labs.check()
    assert (found["failed"], found["unready"]) == (0, 1)
    labs.set(unready_limit_s=10)
    assert eventually(lambda: labs.check("--dry-run")["causes"], 30) == {Failure.STOPPED_ANSWERING.cause: 1}
    assert labs.check()["causes"] == {"stopped_answering": 1}
    assert labs.cause(lab) == "stopped_answering"


def test_a_program_that_ended_for_good_is_found(labs: BreakableLabs) -> None:
    (lab,) = labs.start(restartPolicy="Never")
    labs.tell(lab, "crash")
    eventually_equal(lambda: labs.pod(lab)["status"]["phase"], "Failed", 60)
    assert labs.check()["causes"] == {Failure.PROGRAM_ENDED.cause: 1}
    assert labs.cause(lab) == "program_ended"


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[FakeNodes]:
    with FakeNodes.create(2, tmp_path) as nodes:
        yield nodes


def start_on(nodes: FakeNodes, node: str, labs: BreakableLabs) -> int:
    """Return a RUNNING lab on a fake node; its create asked for what it has."""
    database, namespace = labs.platform.database, labs.platform.namespace
    lab = database.add_lab(status="RUNNING", connection_url="http://10.0.0.1/")
    database.rows(
        "UPDATE lab_instances SET k8s_pod_name = %s, updated_at = now() - interval '1 minute' WHERE id = %s",
        labs.name(lab),
        lab,
    )
    request = {"lab_instance_id": lab, "lab_id": 7, "student_id": 42, "docker_image": os.environ["LAB_IMAGE"]}
    database.rows(
        "INSERT INTO task_ledger (task_id, task_name, lab_instance_id, attempt, redelivered, queue,"
        " claimed_at, finished_at, outcome, details) SELECT 'c', %s, %s, 1, false, 'q', earlier, earlier,"
        " 'succeeded', %s FROM (SELECT now() - interval '1 minute' AS earlier) AS clock",
        CREATE_LAB_POD,
        lab,
        json.dumps({"request": request}),
    )
    namespace.kubectl(
        "create", "--filename=-", stdin=nodes.bound(lab_manifests(lab, namespace.name).pod, node)
    )
    eventually_equal(lambda: labs.ready(lab), "True", 60)
    return lab


def test_a_node_without_room_and_a_node_that_is_away_are_told_apart(
    labs: BreakableLabs, nodes: FakeNodes
) -> None:
    lost, kept = nodes.names
    away, evicted, fine = (
        start_on(nodes, lost, labs),
        start_on(nodes, kept, labs),
        start_on(nodes, kept, labs),
    )
    said = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
    patch = json.dumps({"status": said})
    labs.platform.namespace.kubectl(
        "patch", "pod", labs.name(evicted), "--subresource=status", "--type=merge", f"--patch={patch}"
    )
    nodes.node_goes_away(lost)
    eventually_equal(lambda: labs.ready(away), "False", 60)
    labs.set(unready_limit_s=10, restart_causes=["node_away"])
    found = eventually(lambda: both(labs), 40, what="both are lost")
    assert found == {"node_away": 1, "pod_evicted": 1}
    result = labs.check()
    assert (result["causes"], result["restarted"]) == (found, 1)
    assert labs.cause(away) == Failure.NODE_AWAY.cause
    assert labs.cause(evicted) == Failure.POD_EVICTED.cause
    assert labs.statuses([fine]) == ["RUNNING"]
    # Its node goes with this test.
    labs.platform.database.rows("UPDATE lab_instances SET status = 'STOPPED' WHERE id = %s", fine)
    (again,) = labs.platform.database.rows("SELECT id FROM lab_instances WHERE restart_of = %s", away)
    code, container = labs.platform.containers.run()
    assert code == 0, container.log.read_text()
    assert labs.statuses([again["id"]]) == ["RUNNING"], "its create was published, and a real node took it"


def both(labs: BreakableLabs) -> dict[str, int] | None:
    causes: dict[str, int] = labs.check("--dry-run")["causes"]
    return causes if len(causes) == 2 else None


def test_two_checks_at_once_and_a_delete_beside_them_end_each_lab_once(labs: BreakableLabs) -> None:
    labs.set(restart_causes=["pod_gone"])
    lost, stopped = labs.start(2)
    for lab in (lost, stopped):
        labs.platform.namespace.kubectl("delete", "pod", labs.name(lab), "--grace-period=0", "--force")
    labs.platform.broker.publish_task(name=DELETE_LAB_POD, kwargs={"lab_instance_id": stopped})
    delete = labs.platform.containers.start(queue=QUEUE_HIGH)
    checks = [labs.begin_check() for _ in range(2)]
    assert [process.wait(120) for process in (delete, *checks)] == [0, 0, 0]
    assert labs.cause(lost) == "pod_gone"
    assert sum(process.lines()[-1]["causes"].get("pod_gone", 0) for process in checks) in (1, 2)
    assert labs.statuses([stopped]) == ["STOPPED"], "a delete ends it, whether it was FAILED before or not"
    (again,) = labs.platform.database.rows("SELECT * FROM lab_instances WHERE restart_of = %s", lost)
    while again["status"] == "PENDING":
        code, container = labs.platform.containers.run()
        assert code == 0, container.log.read_text()
        again = labs.platform.database.lab(again["id"])
    assert (again["status"], again["expires_at"]) == (
        "RUNNING",
        labs.platform.database.lab(lost)["expires_at"],
    )
    assert labs.container(again["id"])["resources"]["limits"]["memory"] == "32Mi", "as it was asked for"


def test_the_wrong_namespace_fails_nobody(labs: BreakableLabs) -> None:
    before = labs.platform.database.rows("SELECT id, status FROM lab_instances ORDER BY id")
    running = sum(row["status"] == "RUNNING" for row in before)
    other = OwnNamespace.create()
    try:
        key = "kubeconfig/other.yaml"
        labs.platform.bucket.put(key, other.kubeconfig)
        other.kubectl("delete", "networkpolicy", "default-deny")
        refused: dict[str, Any] = labs.check(code=1, LAB_NAMESPACE=other.name, KUBECONFIG_OBJECT=key)
    finally:
        other.remove()
    assert "a Pod: this may be another cluster or namespace" in refused["message"], running
    assert labs.platform.database.rows("SELECT id, status FROM lab_instances ORDER BY id") == before


def test_nothing_of_somebody_else_is_touched(labs: BreakableLabs) -> None:
    (lab,) = labs.start()
    namespace = labs.platform.namespace
    theirs = {"lab_instance_id": str(lab), "app.kubernetes.io/managed-by": "helm"}
    namespace.kubectl("create", "--filename=-", stdin=operators_pod("theirs", theirs))
    namespace.kubectl("delete", "pod", labs.name(lab), "--grace-period=0", "--force")
    assert labs.check()["causes"] == {"pod_gone": 1}
    eventually_equal(lambda: namespace.names_of(lab), ["Pod/theirs"], 60)
    assert labs.statuses([lab]) == ["FAILED"]
    namespace.kubectl("delete", "pod", "theirs", "--wait=false")
