"""Which refusals are of one lab, and when nothing more of a kind is tried."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.failures import Failure
from jobs.verify.differences import Difference, Kind, Repair
from jobs.verify.remakes import Remakes

KIND = "NetworkPolicy"


def missing(lab: int) -> Difference:
    return Difference(
        kind=Kind.OBJECT_GONE,
        lab=lab,
        object=f"{KIND} lab-instance-{lab}-nmap",
        seen="gone",
        expected="a policy",
        repair=Repair.REBUILD_OR_FAIL,
    )


@pytest.mark.parametrize(
    "text",
    [
        'networkpolicies "lab-instance-{lab}-nmap" is forbidden: policy P denied request',
        'admission webhook "w" denied the request: label lab_instance_id={lab} is not allowed',
        'exceeded quota: labs, used: count={lab}, "lab-instance-{lab}-nmap"',
    ],
)
def test_a_refusal_of_several_labs_is_one_whatever_their_names_and_numbers(text: str) -> None:
    remakes = Remakes()
    for lab in (7, 1042, 1043):
        remakes.refused(KIND, missing(lab), text.format(lab=lab))
    remakes.refused(KIND, missing(5), "spec.egress is not valid")
    assert {one.lab: labs for _, one, _, labs in remakes.judged()} == {7: 3, 1042: 3, 1043: 3, 5: 1}


@pytest.mark.parametrize(
    ("failure", "tries"),
    [(Failure.CLUSTER_REFUSES_ACCESS, 1), (Failure.CLUSTER_AWAY, 2), (Failure.TEMPLATE_INVALID, None)],
)
def test_what_is_refused_to_all_is_not_tried_for_each(failure: Failure, tries: int | None) -> None:
    remakes, tried = Remakes(), 0
    for lab in range(1, 38):
        if not remakes.blocked(KIND):
            tried += 1
            remakes.failed(KIND, missing(lab), failure.error(evidence="no"))
        else:
            remakes.skipped(KIND, missing(lab))
    assert tried == (tries or 37)
    assert remakes.blocked("Service") is None
    (told,) = remakes.refusals()
    assert told.facts == {"object_kind": KIND, "labs": 37}
    assert told.sentence == "37 RUNNING labs stay without a NetworkPolicy, which cannot be made again: no"


def test_an_object_that_is_made_ends_the_row_of_errors() -> None:
    remakes = Remakes()
    for lab in (1, 2, 3):
        remakes.failed(KIND, missing(lab), Failure.CLUSTER_AWAY.error(evidence="500"))
        remakes.made(KIND)
    assert remakes.blocked(KIND) is None


def test_objects_of_no_name_are_judged_as_well() -> None:
    remakes = Remakes()
    remakes.refused(KIND, replace(missing(1), object="row"), "no")
    assert [labs for *_, labs in remakes.judged()] == [1]
