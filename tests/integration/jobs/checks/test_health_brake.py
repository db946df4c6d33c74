"""What health_check_pods refuses: it may look at another cluster, namespace or database."""

from __future__ import annotations

import pytest

from jobs.errors import JobError
from jobs.failures import Failure
from tests.support.labs.health import Checking, unready
from tests.support.labs.verifying import path_of, pod_name


def test_an_empty_answer_of_the_api_server_fails_nobody(checking: Checking) -> None:
    labs = checking.labs(4)
    checking.cluster.objects.clear()
    with pytest.raises(JobError) as refused:
        checking.check()
    assert refused.value.failure is Failure.TOO_MANY_AT_ONCE
    assert "none of the 4 RUNNING labs has a Pod" in refused.value.sentence
    with pytest.raises(JobError):
        checking.check()
    assert checking.statuses(labs) == ["RUNNING"] * 4
    told = [("platform.health_refused", "health_refused", "admin")]
    assert checking.told() == told, "once, though it was refused twice"
    assert checking.check(dry_run=True)["would_fail"] == 4
    assert checking.check(force=True)["failed"] == 4
    assert set(checking.statuses(labs)) == {"FAILED"}


def test_one_lab_without_its_pod_is_believed_where_there_are_policies(checking: Checking) -> None:
    (lab,) = checking.labs()
    checking.lose(lab)
    with pytest.raises(JobError, match="the RUNNING lab has not a Pod"):
        checking.check()
    path = "/apis/networking.k8s.io/v1/namespaces/labs/networkpolicies/default-deny"
    checking.cluster.add(path, {"metadata": {"name": "default-deny", "labels": {}}})
    assert checking.check()["causes"] == {"pod_gone": 1}
    assert checking.cluster.names() == {"default-deny"}


def test_more_than_a_share_at_once_is_refused(checking: Checking) -> None:
    labs = checking.labs(6)
    checking.set(fail_always=1, fail_max_share=0.2)
    for lab in labs[:2]:
        checking.lose(lab)
    with pytest.raises(JobError, match="2 of 6 RUNNING labs would fail, and at most 1 may at once"):
        checking.check()
    checking.set(fail_max_share=0.34)
    assert checking.check()["failed"] == 2


def on_nodes(checking: Checking, **labs: int) -> dict[str, list[int]]:
    """Return so many labs of each node."""
    nodes = {node: checking.labs(count) for node, count in labs.items()}
    for node, some in nodes.items():
        for lab in some:
            checking.pod(lab)["spec"] = {"nodeName": node}
    return nodes


def silence(checking: Checking, labs: list[int]) -> None:
    for lab in labs:
        checking.patch(lab, {"phase": "Running", "conditions": unready(130, containers="True")})


def test_the_loss_of_one_node_is_one_event(checking: Checking) -> None:
    checking.set(fail_always=1, fail_max_share=0.1)
    nodes = on_nodes(checking, a=4, b=1)
    silence(checking, nodes["a"])
    assert checking.check()["causes"] == {"node_away": 4}
    assert checking.statuses(nodes["b"]) == ["RUNNING"]


@pytest.mark.parametrize("heard", [{}, {"c": 1}], ids=["all", "most"])
def test_where_most_nodes_are_silent_the_control_plane_is_not_believed(
    checking: Checking, heard: dict[str, int]
) -> None:
    checking.set(fail_always=2, fail_max_share=0.1)
    nodes = on_nodes(checking, a=2, b=1, **heard)
    silence(checking, nodes["a"] + nodes["b"])
    with pytest.raises(JobError, match=r"at most 2 may at once \(2 nodes are away: a, b\)"):
        checking.check()
    assert checking.statuses(nodes["a"]) == ["RUNNING"] * 2


def test_what_else_is_lost_counts_beside_a_node(checking: Checking) -> None:
    checking.set(fail_always=1, fail_max_share=0.1)
    nodes = on_nodes(checking, a=2, b=2)
    silence(checking, nodes["a"])
    checking.patch(nodes["b"][0], {"phase": "Failed", "reason": "Evicted"})
    with pytest.raises(JobError, match="3 of 4 RUNNING labs would fail"):
        checking.check()


def test_a_node_with_a_ready_lab_is_not_away(checking: Checking) -> None:
    checking.set(fail_always=1, fail_max_share=0.1)
    nodes = on_nodes(checking, a=3, b=1)
    silence(checking, nodes["a"][:2])
    with pytest.raises(JobError, match="2 of 4 RUNNING labs would fail, and at most 1 may at once"):
        checking.check()


def test_pods_are_judged_by_the_clock_of_the_cluster(checking: Checking) -> None:
    """The database's clock is ahead of it: Pods that became not Ready 5 s ago look like lost ones."""
    labs = checking.labs(3)
    checking.cluster.ahead_s = -125
    for lab in labs[:2]:
        checking.patch(lab, {"phase": "Running", "conditions": unready(130)})
    result = checking.check()
    assert (result["unready"], result["ready"], result["failed"]) == (2, 1, 0)
    checking.cluster.ahead_s = 0
    assert checking.check()["causes"] == {"stopped_answering": 2}


def test_another_platforms_database_fails_nobody(checking: Checking) -> None:
    labs = checking.labs(4)
    for lab in labs[:3]:
        checking.pod(lab)["metadata"]["labels"]["student_id"] = "43"
    checking.lose(labs[3])
    with pytest.raises(JobError, match="this may be another database"):
        checking.check()
    assert checking.statuses(labs) == ["RUNNING"] * 4


def test_pods_that_somebody_labelled_by_hand_keep_no_lab_from_being_judged(checking: Checking) -> None:
    lost, *others = checking.labs(5)
    for number, (lab, left_out) in enumerate([(lost, "lab_id"), *((lab, "") for lab in others[:2])]):
        own = checking.pod(lab)
        labels = {**own["metadata"]["labels"], "student_id": "43"}
        labels.pop(left_out, None)
        stray = {**own, "metadata": {**own["metadata"], "name": f"stray-{number}", "labels": labels}}
        checking.cluster.objects[path_of("Pod", f"stray-{number}")] = stray
    checking.patch(lost, {"phase": "Running", "conditions": unready(400)})
    assert checking.check()["failed"] == 1
    assert checking.statuses([lost, *others]) == ["FAILED"] + ["RUNNING"] * 4


def as_another_platforms(checking: Checking, lab: int, **labels: str) -> None:
    """Let a lab's objects be those that another platform has of the same id."""
    for kind in ("Pod", "Service", "NetworkPolicy"):
        made = checking.cluster.objects.pop(path_of(kind, pod_name(lab)))
        name = f"lab-instance-{lab}-theirs"
        own = {**made["metadata"], "name": name, "uid": name}
        own["labels"] = {**own["labels"], "lab_id": "777", **labels}
        checking.cluster.objects[path_of(kind, name)] = {**made, "metadata": own}


@pytest.mark.parametrize(("count", "matching"), [(1, 0), (2, 0), (5, 1)])
def test_another_platforms_cluster_keeps_its_labs(checking: Checking, count: int, matching: int) -> None:
    """Ids begin at 1 everywhere, and names end with the image: only labels say whose a Pod is."""
    labs = checking.labs(count)
    for lab in labs[matching:]:
        as_another_platforms(checking, lab)
    before = dict(checking.cluster.objects)
    with pytest.raises(JobError, match="this may be another database"):
        checking.check()
    assert checking.statuses(labs) == ["RUNNING"] * count
    assert checking.cluster.objects == before


def test_another_platforms_cluster_with_other_ids_fails_nobody(checking: Checking) -> None:
    labs = checking.labs(2)
    for lab in labs:
        as_another_platforms(checking, lab, lab_instance_id=str(lab + 100))
    with pytest.raises(JobError, match="none of the 2 RUNNING labs has a Pod"):
        checking.check()
    assert checking.statuses(labs) == ["RUNNING"] * 2


def test_what_is_labelled_as_another_students_is_not_deleted_with_a_lost_lab(checking: Checking) -> None:
    lost, _ = checking.labs(2)
    del checking.cluster.objects[path_of("Pod", pod_name(lost))]
    service = checking.cluster.objects[path_of("Service", pod_name(lost))]
    service["metadata"]["labels"]["student_id"] = "43"
    assert checking.check()["failed"] == 1
    assert [path for path in checking.cluster.objects if pod_name(lost) in path] == [
        path_of("Service", pod_name(lost))
    ]
