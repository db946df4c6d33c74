"""Labs that break on the real cluster are found by the next health check, each with its cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from dispatcher.broker.topology import QUEUE_HIGH
from dispatcher.tasks import DELETE_LAB_POD
from jobs.failures import Failure
from tests.support.clearing import clear
from tests.support.cluster.fake_nodes import FakeNodes
from tests.support.cluster.own_namespace import OwnNamespace
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.labs.breakable_labs import HANGS_S, BreakableLabs
from tests.support.labs.broken_labs import BrokenLabs
from tests.support.labs.failing_labs import operators_pod
from tests.support.waiting import eventually_equal

#: The first test of each kind waits for what is played for all of them, and kwok may have to be built.
pytestmark = pytest.mark.timeout(5 * HANGS_S)


@pytest.fixture(scope="module")
def steady(own_platform: OwnPlatform) -> int:
    """One lab that nothing happens to: where no lab has a Pod, no check believes it."""
    (lab,) = BreakableLabs(own_platform).start()
    return lab


@pytest.fixture(scope="module")
def broken(
    own_platform: OwnPlatform, steady: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrokenLabs]:
    """Labs that broke and were found, all at the same time."""
    broken = BrokenLabs(BreakableLabs(own_platform))
    try:
        with FakeNodes.create(2, tmp_path_factory.mktemp("nodes")) as nodes:
            broken.play(nodes)
    except BaseException:
        clear(own_platform, keep=[steady])
        raise
    yield broken
    clear(own_platform, keep=[steady])


@pytest.fixture
def labs(own_platform: OwnPlatform, steady: int) -> Iterator[BreakableLabs]:
    """Labs of one test, which are gone after it, whatever became of it."""
    labs = BreakableLabs(own_platform)
    labs.set()
    before = [row["id"] for row in own_platform.database.rows("SELECT id FROM lab_instances")]
    yield labs
    clear(own_platform, keep=before)


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


def test_a_program_that_fills_its_disk_is_evicted_and_found(broken: BrokenLabs) -> None:
    lab = broken.broken("filled")
    assert broken.labs.cause(lab) == "out_of_disk"
    assert 'Usage of EmptyDir volume "tmp" exceeds' in broken.labs.run_of(lab)["details"]["evidence"]


def test_programs_that_end_again_and_again_are_found(broken: BrokenLabs) -> None:
    eats, crashes = broken.broken("eats"), broken.broken("crashes")
    assert broken.labs.cause(eats) == "out_of_memory"
    assert broken.labs.cause(crashes) == "program_crashes"
    (container,) = broken.labs.run_of(crashes)["details"]["seen"]["containers"]
    assert (container["exit_code"], container["restarts"] >= 2) == (3, True)


def test_a_lab_that_ran_out_of_memory_once_goes_on_and_its_teacher_is_told(broken: BrokenLabs) -> None:
    lab = broken.broken("ate")
    assert [check["ran_out_of_memory"] for check in (broken.first, broken.second, broken.third)] == [1, 1, 1]
    assert broken.third["failed"] == 0
    told = broken.labs.platform.database.rows(
        "SELECT event_type, told FROM notifications WHERE lab_instance_id = %s ORDER BY id", lab
    )
    assert told == [
        {"event_type": "lab.out_of_memory", "told": "teacher"},
        {"event_type": "lab.failed", "told": "admin"},
    ]
    assert broken.last["causes"] == {"pod_gone": 1}
    assert broken.labs.cause(lab) == "pod_gone"


def test_a_program_that_does_not_answer_any_more_is_found_after_the_limit(broken: BrokenLabs) -> None:
    lab = broken.broken("silent")
    assert broken.statuses["silent"] == "RUNNING", "before the limit"
    assert broken.first["unready"] >= 1
    assert broken.labs.cause(lab) == "stopped_answering"


def test_a_program_that_ended_for_good_is_found(broken: BrokenLabs) -> None:
    assert broken.labs.cause(broken.broken("ended")) == "program_ended"


def test_a_node_without_room_and_a_node_that_is_away_are_told_apart(broken: BrokenLabs) -> None:
    away, evicted = broken.broken("away"), broken.broken("evicted")
    assert broken.labs.cause(away) == Failure.NODE_AWAY.cause
    assert broken.labs.cause(evicted) == Failure.POD_EVICTED.cause
    assert broken.statuses_at_last["fine"] == "RUNNING"
    assert broken.second["restarted"] == 1
    assert broken.statuses_at_last["started again"] == "RUNNING", (
        "its create was published, and a real node took it"
    )


def test_pods_of_a_node_that_goes_away_are_not_ready_and_those_of_another_are(broken: BrokenLabs) -> None:
    broken.broken("away")
    status = broken.pod_away["status"]
    (ready,) = [one["status"] for one in status["conditions"] if one["type"] == "Ready"]
    assert (status["phase"], ready) == ("Running", "False")
    assert broken.beside_it == {"node": "True", "pod": "True"}


def test_each_check_counts_what_it_fails(broken: BrokenLabs) -> None:
    # The kubelet's time decides which check finds a full disk, or a program in the moment of its next start.
    at_any_time = {"out_of_disk", "out_of_memory", "program_crashes", "program_ended"}
    when_the_limit_is_reached = {"node_away", "pod_evicted", "stopped_answering"}
    first, second = broken.first["causes"], broken.second["causes"]
    assert set(first) <= at_any_time
    assert Counter(first) + Counter(second) == Counter(at_any_time | when_the_limit_is_reached)
    for check in (broken.first, broken.second):
        assert check["failed"] == sum(check["causes"].values())


def test_two_checks_at_once_and_a_delete_beside_them_end_each_lab_once(labs: BreakableLabs) -> None:
    labs.set(restart_causes=["pod_gone"])
    lost, stopped = labs.start(2)
    for lab in (lost, stopped):
        labs.platform.namespace.kubectl("delete", "pod", labs.name(lab), "--grace-period=0", "--force")
    labs.platform.broker.publish_task(name=DELETE_LAB_POD, kwargs={"lab_instance_id": stopped})
    delete = labs.platform.containers.start(queue=QUEUE_HIGH)
    checks = [labs.begin_check() for _ in range(2)]
    assert [process.wait(HANGS_S) for process in (delete, *checks)] == [0, 0, 0]
    assert labs.cause(lost) == "pod_gone"
    assert sum(process.lines()[-1]["causes"].get("pod_gone", 0) for process in checks) in (1, 2)
    assert labs.statuses([stopped]) == ["STOPPED"], "a delete ends it, whether it was FAILED before or not"
    (again,) = labs.platform.database.rows("SELECT * FROM lab_instances WHERE restart_of = %s", lost)
    while again["status"] == "PENDING":
        labs.serve()
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
    eventually_equal(lambda: namespace.names_of(lab), ["Pod/theirs"], HANGS_S)
    assert labs.statuses([lab]) == ["FAILED"]
    namespace.kubectl("delete", "pod", "theirs", "--wait=false")
