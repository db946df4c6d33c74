"""How much is repaired at once, and what is printed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from console.verify.report import Report
from jobs.database.snapshot_rows import LabRow
from jobs.verify.differences import Difference, Kind, Repair, compare, unneeded
from jobs.verify.inventory import Inventory, QueueContents
from jobs.verify.objects import make_object
from jobs.verify.repairs import refusal
from tests.unit.jobs.verify.test_differences import NOW, ago, item, message, row


def differences(count: int, **changes: Any) -> list[Difference]:
    given = {"kind": Kind.REQUEST_LOST, "seen": "lost", "expected": "", "since": None, **changes}
    given = {"object": "row", "repair": Repair.FAIL_PENDING, **given}
    return [Difference(lab=lab, **given) for lab in range(1, count + 1)]


def platform(live: int, **changes: Any) -> Inventory:
    labs: list[LabRow] = [row("PENDING", lab) for lab in range(1, live + 1)]
    return Inventory(NOW, rows={one.id: one for one in labs}, **changes)


@pytest.mark.parametrize(
    ("affected", "live", "refused"),
    [(10, 10, False), (11, 11, True), (11, 50, True), (20, 100, False), (21, 100, True), (1, 1, False)],
)
def test_a_fifth_of_the_labs_or_ten_are_repaired_at_once(affected: int, live: int, refused: bool) -> None:
    assert bool(refusal(differences(affected), platform(live))) is refused


def test_what_nobody_would_repair_is_not_counted() -> None:
    assert refusal(differences(50, repair=None), platform(50)) is None


def test_several_objects_of_one_lab_are_one_lab() -> None:
    (one,) = differences(1)
    assert refusal([one] * 50, platform(50)) is None


@pytest.mark.parametrize(("running", "gone", "refused"), [(3, 3, True), (2, 2, False), (4, 3, False)])
def test_labs_that_are_all_gone_are_in_another_cluster(running: int, gone: int, refused: bool) -> None:
    labs = [row("RUNNING", lab) for lab in range(1, running + 1)]
    inventory = Inventory(
        NOW, rows={one.id: one for one in [*labs, row("STOPPED", 9)]}, objects=[item(lab=9)]
    )
    found = differences(gone, kind=Kind.POD_GONE, repair=Repair.FAIL_RUNNING)
    assert bool(refusal(found, inventory)) is refused


@pytest.mark.parametrize("others", [0, 2], ids=["empty", "of others"])
@pytest.mark.parametrize(("running", "gone", "refused"), [(1, 1, True), (2, 2, True), (2, 1, False)])
def test_few_labs_that_are_all_gone_are_in_another_cluster_if_nothing_there_is_ours(
    running: int, gone: int, refused: bool, others: int
) -> None:
    objects = [item(lab=lab) for lab in range(101, 101 + others)]
    inventory = Inventory(
        NOW, rows={lab: row("RUNNING", lab) for lab in range(1, running + 1)}, objects=objects
    )
    found = differences(gone, kind=Kind.POD_GONE, repair=Repair.FAIL_RUNNING)
    assert bool(refusal(found, inventory)) is refused


def test_two_labs_that_are_all_gone_are_believed_where_a_policy_governs_the_empty_namespace() -> None:
    rows = {lab: row("RUNNING", lab) for lab in (1, 2)}
    found = differences(2, kind=Kind.POD_GONE, repair=Repair.FAIL_RUNNING)
    assert refusal(found, Inventory(NOW, rows=rows, empty_but_governed=True)) is None


def test_objects_of_other_students_are_in_another_database() -> None:
    inventory = Inventory(NOW, rows={5: row("STOPPED")}, objects=[item(), item("Service", student_id="43")])
    found = compare(inventory)
    assert {(one.kind, one.repair) for one in found} == {
        (Kind.ORPHAN, Repair.DELETE_OBJECT),
        (Kind.WRONG_LABELS, None),
    }
    assert "1 lab with objects of another lab or student than the row" in str(refusal(found, inventory))


@pytest.mark.parametrize(("known", "refused"), [(0, True), (1, False)])
def test_objects_that_are_all_unknown_are_in_another_database(known: int, refused: bool) -> None:
    labs = [row("STOPPED", lab) for lab in range(1, known + 1)]
    objects = [item(lab=lab) for lab in (1, 2, 3)]
    inventory = Inventory(NOW, rows={one.id: one for one in labs}, objects=objects, last_lab=100)
    assert bool(refusal(compare(inventory), inventory)) is refused


@pytest.mark.parametrize("label", [None, "", "0", "007", "-1", "1.5", "x", "٣", "9" * 19])
def test_a_label_that_we_never_write_names_no_lab(label: str | None) -> None:
    labels = {} if label is None else {"lab_instance_id": label}
    metadata = {"name": "x", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": labels}
    assert make_object("Service", {"metadata": metadata}).lab is None


def report(*found: Difference, **others: Any) -> Report:
    return Report(found, platform(2, queues=QueueContents(dead_letters=1)), 1.0, **others)


def test_a_table_says_what_a_repair_would_do_or_did() -> None:
    first, second = differences(2, since=ago(7300))
    lines = report(first, second).as_text().splitlines()
    assert lines == [
        "LAB  WHAT DIFFERS  SINCE  --repair WOULD",
        "1    row: lost     2 h    make the lab FAILED: its request was lost",
        "2    row: lost     2 h    make the lab FAILED: its request was lost",
        "note: in celery.dlq: 1 dead letter (autolabs dlq list)",
        "checked 2 rows, 0 objects, 0 messages in 1.0 s: 2 differences",
    ]
    done = report(first, second, repaired={0: (True, "did it"), 1: (False, "could not")})
    assert done.left == 1
    assert done.as_text().splitlines()[1].endswith("did it")
    assert done.as_text().endswith("2 differences, 1 of them left")


def test_a_difference_that_nobody_repairs_is_left_to_a_person() -> None:
    (one,) = differences(1, repair=None)
    assert report(one).as_text().splitlines()[1].endswith("unknown  do nothing: a person has to look")


def test_text_of_others_cannot_reach_the_terminal() -> None:
    (one,) = differences(1, seen="\x1b[2Jgone")
    assert "\x1b" not in report(one).as_text()
    assert json.loads(report(one).as_json())["differences"][0]["is"] == "\x1b[2Jgone"


def test_what_could_not_be_looked_at_is_not_clean() -> None:
    gap = Report([], platform(0, queues=QueueContents(gaps=["something"])), 1.0)
    assert json.loads(gap.as_json())["clean"] is False
    assert "not all could be looked at: something" in gap.as_text()
    assert gap.as_text().endswith("nothing of this differs")


def test_what_is_normal_is_a_note() -> None:
    looked = QueueContents(unacked={"q": 3, "r": 1})
    inventory = platform(0, queues=looked, under_way={"q": 2, "r": 1})
    text = Report(
        [], inventory, 1.0, unneeded=1, looked_at={"database": "d at h", "namespace": "labs"}
    ).as_text()
    assert text.splitlines() == [
        "note: in the queues, not needed any more: 1 message",
        "note: q: consumers hold 3 messages, with 2 runs under way",
        "looked at database d at h, namespace labs",
        "checked 0 rows, 0 objects, 0 messages in 1.0 s: nothing differs",
    ]


def test_what_is_not_needed_for_a_short_time_is_counted() -> None:
    stopped = row("STOPPED", ended_at=ago(300))
    inventory = Inventory(NOW, rows={5: stopped}, queues=QueueContents([message()]))
    assert (compare(inventory), unneeded(inventory)) == ([], 1)
