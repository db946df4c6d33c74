"""Every situation in which rows, objects and messages can be, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from dispatcher.tasks import CREATE_LAB_POD, DELETE_LAB_POD
from jobs.cluster.pod_fields import State
from jobs.cluster.pod_status import PodStatus
from jobs.database.snapshot_rows import LabRow
from jobs.verify.differences import Difference, Kind, Repair, compare
from jobs.verify.inventory import Inventory, LabObject, Message, QueueContents

NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
KINDS = ("Pod", "Service", "NetworkPolicy")


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def row(status: str = "RUNNING", lab: int = 5, **changes: Any) -> LabRow:
    given: dict[str, Any] = {
        "id": lab,
        "lab_id": 7,
        "student_id": 42,
        "status": status,
        "k8s_pod_name": None if status == "PENDING" else f"lab-instance-{lab}-demo",
        "created_at": ago(3600),
        "updated_at": ago(3000),
        "stop_requested_at": None,
        "ended_at": ago(3000),
    }
    return LabRow(**given | changes)


def item(
    kind: str = "Pod", lab: int | None = 5, *, ready: bool = True, ended: str = "", **changes: Any
) -> LabObject:
    state = State.LOST if ended else State.READY if ready else State.UNREADY
    given: dict[str, Any] = {
        "kind": kind,
        "name": f"lab-instance-{lab}-demo",
        "uid": f"uid-{kind}",
        "lab": lab,
        "lab_id": "7",
        "student_id": "42",
        "created_at": ago(3500),
        "deleted_by": None,
        "owner_uids": () if kind == "Pod" else ("uid-Pod",),
        "status": PodStatus(State.GOING if changes.get("deleted_by") else state, evidence=ended),
        "ready_since": ago(3400),
    }
    return LabObject(**given | changes)


def message(name: str = CREATE_LAB_POD, lab: int | None = 5, **changes: Any) -> Message:
    return replace(Message("celery.lab_operations", "task-1", name, lab, ago(700)), **changes)


def three(**changes: Any) -> list[LabObject]:
    return [item(kind, **changes) for kind in KINDS]


def found(
    *rows: LabRow,
    objects: list[LabObject] | None = None,
    messages: list[Message] | None = None,
    **others: Any,
) -> list[Difference]:
    looked = others.pop("queues", QueueContents(messages or [], **others.pop("look", {})))
    others = {"last_lab": 100, **others}
    inventory = Inventory(
        NOW, rows={one.id: one for one in rows}, objects=objects or [], queues=looked, **others
    )
    return compare(inventory)


def said(*rows: LabRow, **others: Any) -> list[tuple[Kind, str, Repair | None]]:
    return [(one.kind, one.object, one.repair) for one in found(*rows, **others)]


FINE: dict[str, tuple[list[LabRow], dict[str, Any]]] = {
    "a running lab": ([row()], {"objects": three()}),
    "a pending lab with its message": ([row("PENDING")], {"messages": [message()]}),
    "a pending lab whose delete overtook its create": (
        [row("PENDING")],
        {"messages": [message(DELETE_LAB_POD)]},
    ),
    "a pending lab in the outbox": ([row("PENDING")], {"outbox": {(5, CREATE_LAB_POD)}}),
    "a pending lab that is started": (
        [row("PENDING")],
        {"objects": three(), "going_on": {(5, CREATE_LAB_POD)}},
    ),
    "a request that is just made": ([row("PENDING", created_at=ago(30))], {}),
    "a request that a container just left": ([row("PENDING")], {"last_run_at": {5: ago(10)}}),
    "a pending lab that may wait on the ladder": ([row("PENDING")], {"look": {"delayed": 1}}),
    "a stopping lab with its message": (
        [row(stop_requested_at=ago(100))],
        {"messages": [message(DELETE_LAB_POD)]},
    ),
    "a stopping lab whose objects go": (
        [row(stop_requested_at=ago(100))],
        {"objects": [item("Service", owner_uids=())], "going_on": {(5, DELETE_LAB_POD)}},
    ),
    "a stop that was just asked for": ([row(stop_requested_at=ago(20))], {"objects": three()}),
    "a lab that was just stopped": ([row("STOPPED", ended_at=ago(20))], {"objects": three()}),
    "objects of a lab that failed a moment ago": ([row("FAILED", ended_at=ago(20))], {"objects": three()}),
    "objects that a failed lab keeps": (
        [row("FAILED", ended_at=ago(900))],
        {"objects": three(), "kept_until": {5: ago(-100)}},
    ),
    "objects whose row is not to be seen yet": ([], {"objects": three(created_at=ago(30))}),
    "an orphan that is going": ([row("STOPPED")], {"objects": [item(deleted_by=ago(5))]}),
    "a pod that somebody deletes": (
        [row()],
        {"objects": [item(deleted_by=ago(-5), ready=False), *three()[1:]]},
    ),
    "a running lab about to be stopped": (
        [row()],
        {"objects": three(), "messages": [message(DELETE_LAB_POD)]},
    ),
    "the delete of a failed lab": ([row("FAILED")], {"messages": [message(DELETE_LAB_POD)]}),
    "the create that takes a failed lab's objects down": (
        [row("FAILED", ended_at=ago(600))],
        {"messages": [message()], "objects": three(), "kept_until": {5: ago(10)}},
    ),
    "the create of a lab that was just stopped": (
        [row("STOPPED", ended_at=ago(20))],
        {"messages": [message()]},
    ),
    "a message that is ahead of its row": ([], {"messages": [message(published_at=ago(5))]}),
    "a message about no lab": ([], {"messages": [message("celery_workers.cleanup_timeout_labs", None)]}),
    "a stopped lab": ([row("STOPPED")], {}),
    "messages that consumers hold without a run": (
        [],
        {"look": {"unacked": {"q": 3}}, "under_way": {"q": 2}},
    ),
    "a pending lab whose message may just be claimed": (
        [row("PENDING")],
        {"look": {"unacked": {"q": 3}}, "under_way": {"q": 2}},
    ),
    "a create that waited when its lab was stopped": (
        [row("STOPPED", ended_at=ago(300))],
        {"messages": [message(published_at=ago(3000))]},
    ),
    "messages that consumers work on": ([], {"look": {"unacked": {"q": 2}}, "under_way": {"q": 2}}),
    "runs that were killed": ([], {"look": {"unacked": {"q": 0}}, "under_way": {"q": 3}}),
    "queues that were not looked at": ([row("PENDING")], {"queues": None}),
    "queues that could not be looked at": ([row("PENDING")], {"look": {"gaps": ["something"]}}),
}


@pytest.mark.parametrize("case", FINE)
def test_nothing_is_said_of(case: str) -> None:
    rows, others = FINE[case]
    assert said(*rows, **others) == []


NAME = "lab-instance-5-demo"
FAIL = Repair.FAIL_RUNNING
WRONG: dict[str, tuple[list[LabRow], dict[str, Any], tuple[Kind, str, Repair | None]]] = {
    "no objects": ([row()], {}, (Kind.POD_GONE, f"Pod {NAME}", FAIL)),
    "no pod": ([row()], {"objects": three()[1:]}, (Kind.POD_GONE, f"Pod {NAME}", FAIL)),
    "no pod name": ([row(k8s_pod_name=None)], {}, (Kind.POD_GONE, "Pod None", FAIL)),
    "no service": (
        [row()],
        {"objects": [item(), item("NetworkPolicy")]},
        (Kind.OBJECT_GONE, f"Service {NAME}", Repair.REBUILD),
    ),
    "no policy": (
        [row()],
        {"objects": three()[:2]},
        (Kind.OBJECT_GONE, f"NetworkPolicy {NAME}", Repair.REBUILD_OR_FAIL),
    ),
    "an ended pod": (
        [row()],
        {"objects": [item(ended="Failed Evicted", ready=False), *three()[1:]]},
        (Kind.POD_ENDED, f"Pod {NAME}", FAIL),
    ),
    "a pod whose deletion hangs": (
        [row()],
        {"objects": [item(deleted_by=ago(300)), *three()[1:]]},
        (Kind.POD_ENDED, f"Pod {NAME}", FAIL),
    ),
    "a pod that is not ready": (
        [row()],
        {"objects": [item(ready=False), *three()[1:]]},
        (Kind.POD_NOT_READY, f"Pod {NAME}", None),
    ),
    "a service that another pod owns": (
        [row()],
        {"objects": [item(), item("Service", owner_uids=("other",)), item("NetworkPolicy")]},
        (Kind.NOT_OWNED, f"Service {NAME}", None),
    ),
    "labels of another student": (
        [row()],
        {"objects": [item(student_id="43"), *three()[1:]]},
        (Kind.WRONG_LABELS, f"Pod {NAME}", None),
    ),
    "a second pod": (
        [row()],
        {"objects": [*three(), item(name="lab-instance-5-other", uid="x")]},
        (Kind.SECOND_OBJECT, "Pod lab-instance-5-other", Repair.DELETE_OBJECT),
    ),
    "an orphan of a stopped lab": (
        [row("STOPPED")],
        {"objects": [item()]},
        (Kind.ORPHAN, f"Pod {NAME}", Repair.DELETE_OBJECT),
    ),
    "a young orphan of a lab stopped long ago": (
        [row("STOPPED")],
        {"objects": [item(created_at=ago(5))]},
        (Kind.ORPHAN, f"Pod {NAME}", Repair.DELETE_OBJECT),
    ),
    "an orphan whose deletion hangs": (
        [row("STOPPED")],
        {"objects": [item(deleted_by=ago(300))]},
        (Kind.ORPHAN, f"Pod {NAME}", Repair.DELETE_OBJECT),
    ),
    "an object kept too long": (
        [row("FAILED")],
        {"objects": [item("Service")], "kept_until": {5: ago(61)}},
        (Kind.ORPHAN, f"Service {NAME}", Repair.DELETE_OBJECT),
    ),
    "an object without a row": (
        [],
        {"objects": [item("NetworkPolicy")]},
        (Kind.ORPHAN, f"NetworkPolicy {NAME}", Repair.DELETE_OBJECT),
    ),
    "an object with an id that no lab ever had": (
        [],
        {"objects": [item()], "last_lab": 4},
        (Kind.ORPHAN, f"Pod {NAME}", None),
    ),
    "an object without a row, when nobody knows the newest lab": (
        [],
        {"objects": [item()], "last_lab": None},
        (Kind.ORPHAN, f"Pod {NAME}", None),
    ),
    "an orphan that names another student than the row": (
        [row("STOPPED")],
        {"objects": [item(student_id="43")]},
        (Kind.WRONG_LABELS, f"Pod {NAME}", None),
    ),
    "an object that names no lab": (
        [],
        {"objects": [item(lab=None, name="odd")]},
        (Kind.NO_LAB, "Pod odd", None),
    ),
    "a lost request": ([row("PENDING")], {}, (Kind.REQUEST_LOST, "row", Repair.FAIL_PENDING)),
    "a lost request with objects": (
        [row("PENDING")],
        {"objects": three()},
        (Kind.REQUEST_LOST, "row", Repair.FAIL_PENDING),
    ),
    "a lost request beside known delays": (
        [row("PENDING")],
        {"look": {"delayed": 3, "known_delays": 3}},
        (Kind.REQUEST_LOST, "row", Repair.FAIL_PENDING),
    ),
    "a lost stop": (
        [row(stop_requested_at=ago(100))],
        {"objects": three()},
        (Kind.STOP_LOST, "row", Repair.PUBLISH_DELETE),
    ),
    "a lost stop before the start": (
        [row("PENDING", stop_requested_at=ago(100))],
        {"messages": [message()]},
        (Kind.STOP_LOST, "row", Repair.PUBLISH_DELETE),
    ),
    "a lost stop while delays wait": (
        [row(stop_requested_at=ago(100))],
        {"look": {"delayed": 9}},
        (Kind.STOP_LOST, "row", Repair.PUBLISH_DELETE),
    ),
    "a create of a running lab": (
        [row()],
        {"objects": three(), "messages": [message()]},
        (Kind.USELESS_MESSAGE, "message task-1", Repair.DISCARD_MESSAGE),
    ),
    "a create of a stopped lab": (
        [row("STOPPED")],
        {"messages": [message()]},
        (Kind.USELESS_MESSAGE, "message task-1", Repair.DISCARD_MESSAGE),
    ),
    "a delete of a stopped lab": (
        [row("STOPPED")],
        {"messages": [message(DELETE_LAB_POD, published_at=None)]},
        (Kind.USELESS_MESSAGE, "message task-1", Repair.DISCARD_MESSAGE),
    ),
    "a message without a row": (
        [],
        {"messages": [message()]},
        (Kind.MESSAGE_WITHOUT_ROW, "message task-1", None),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_it_is_said_what_differs(case: str) -> None:
    rows, others, expected = WRONG[case]
    assert said(*rows, **others) == [expected]


def test_more_lost_requests_than_tasks_on_the_ladder_are_told_and_left_to_a_person() -> None:
    (first, second) = found(row("PENDING", 1), row("PENDING", 2), look={"delayed": 1})
    assert (first.kind, first.repair, second.repair) == (Kind.REQUEST_LOST, None, None)
    assert "1 of 2 such labs may wait unseen, or be claimed" in first.seen


def test_a_difference_says_since_when() -> None:
    since = {
        case: found(*rows, **others)[0].since
        for case, (rows, others, _) in WRONG.items()
        if case
        in (
            "a lost request",
            "a lost stop",
            "an orphan of a stopped lab",
            "a young orphan of a lab stopped long ago",
        )
    }
    assert since == {
        "a lost request": ago(3600),
        "a lost stop": ago(100),
        "an orphan of a stopped lab": ago(3000),
        "a young orphan of a lab stopped long ago": ago(5),
    }


def test_differences_are_sorted_by_lab_and_know_what_a_repair_compares() -> None:
    first, second, third = found(
        row("STOPPED", 9), row(lab=2), objects=[item(lab=9), item(lab=None, name="odd")]
    )
    assert (first.lab, second.lab, third.lab) == (2, 9, None)
    assert first.row == row(lab=2)
    assert second.lab_object == item(lab=9)


def test_the_grace_age_is_the_callers() -> None:
    inventory = Inventory(NOW, rows={5: row("PENDING", created_at=ago(30))}, queues=QueueContents())
    assert compare(inventory) == []
    assert [one.kind for one in compare(replace(inventory, grace_s=10))] == [Kind.REQUEST_LOST]


ADDRESSES = {
    "another address": ("http://10.0.0.1:8080/", "10.0.0.2", True, ["other_address"]),
    "another one of IPv6": ("http://[fd00::1]:8080/", "fd00::2", True, ["other_address"]),
    "the same": ("http://10.0.0.2:8080/", "10.0.0.2", True, []),
    "the same of IPv6, written otherwise": ("http://[FD00:0::2]:8080/", "fd00::2", True, []),
    "a name": ("https://labs.example.com/5/", "10.0.0.2", True, []),
    "a gateway's address": ("http://203.0.113.5/5/", "10.0.0.2", False, []),
    "no URL": (None, "10.0.0.2", True, []),
    "no address": ("http://10.0.0.1:8080/", None, True, []),
    "a headless Service": ("http://10.0.0.1:8080/", "None", True, []),
    "an odd URL": ("http://[::1", "10.0.0.2", True, []),
}


@pytest.mark.parametrize(("url", "address", "by_address", "kinds"), ADDRESSES.values(), ids=ADDRESSES)
def test_a_url_with_another_address_than_the_services_is_a_difference(
    url: str | None, address: str | None, by_address: bool, kinds: list[str]
) -> None:
    objects = [replace(one, address=address) if one.kind == "Service" else one for one in three()]
    inventory = Inventory(NOW, rows={5: row(connection_url=url)}, objects=objects, last_lab=99)
    inventory.urls_name_address = by_address
    differences = compare(inventory)
    assert [one.kind.value for one in differences] == kinds
    assert all(one.repair is Repair.CORRECT_URL for one in differences)


def test_an_object_of_an_earlier_lab_with_the_same_id_is_for_a_person() -> None:
    objects = three(object_label="a" * 20)
    inventory = Inventory(NOW, rows={5: row(object_label="b" * 20)}, objects=objects, last_lab=99)
    assert {(one.kind, one.repair) for one in compare(inventory)} == {(Kind.WRONG_LABELS, None)}


@pytest.mark.parametrize(("pod", "own"), [("a" * 20, "a" * 20), (None, "a" * 20), ("a" * 20, None)])
def test_an_object_with_the_labs_label_or_without_one_is_its_own(pod: str | None, own: str | None) -> None:
    inventory = Inventory(NOW, rows={5: row(object_label=own)}, objects=three(object_label=pod), last_lab=99)
    assert compare(inventory) == []
