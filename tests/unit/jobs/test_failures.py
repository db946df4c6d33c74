from __future__ import annotations

import string
import time

import pytest

from dispatcher.failure_contract import Audience, Category
from jobs.errors import PermanentError, TransientError
from jobs.failures import Failure, given_up
from jobs.handlers.delete import FailedDelete
from jobs.handlers.failed_task import FailedTask
from jobs.handlers.resize import FailedResize

VALUES = {
    "image": "nmap:v1",
    "allowed": "labs/*",
    "key": "settings/x.yaml",
    "bucket": "autolabs-configs",
    "name": "cpu",
    "asked": "9",
    "most": "2",
    "problem": "lab_id is missing",
    "unsupported": "chain",
    "pod": "x",
    "lab_instance_id": 5,
    "minutes": 60,
    "kept": "cpu 500m",
    "status": 418,
}


@pytest.mark.parametrize("failure", Failure, ids=lambda failure: failure.cause)
def test_every_failure_has_a_whole_sentence(failure: Failure) -> None:
    error = failure.error(**VALUES, evidence="seen")
    used = {name for _, name, _, _ in string.Formatter().parse(failure.value.sentence) if name}
    assert used <= set(VALUES)
    if failure is not Failure.MESSAGE_UNREADABLE:
        assert error.sentence.endswith(".")
    assert str(error) == f"{error.sentence} [seen]"
    assert isinstance(error, TransientError if failure.retry else PermanentError)


@pytest.mark.parametrize("failure", Failure, ids=lambda failure: failure.cause)
def test_temporary_failures_are_tried_again_and_permanent_ones_are_not(failure: Failure) -> None:
    # Not so a row that is not there yet, a request that ran out or was lost, and a lab that went away.
    other = (
        Failure.LAB_UNKNOWN,
        Failure.EXPIRED,
        Failure.REQUEST_LOST,
        Failure.POD_GONE,
        Failure.OBJECT_GONE,
        Failure.POD_EVICTED,
        Failure.NODE_AWAY,
        Failure.NEVER_STARTED,
        Failure.LAB_NOT_STARTED,
        Failure.RESIZE_DEFERRED,
        Failure.RESIZE_STUCK,
    )
    if failure not in other:
        assert failure.retry == failure.category.value.startswith("TEMPORARY")


@pytest.mark.parametrize("failure", Failure, ids=lambda failure: failure.cause)
def test_the_specifications_people_are_told(failure: Failure) -> None:
    if failure.category is Category.PERMANENT_IMAGE_ERROR:
        assert failure.audience is Audience.TEACHER
    if failure.category is Category.PERMANENT_PERMISSION_ERROR:
        assert failure.audience is Audience.ADMIN


def test_what_is_given_up_no_longer_promises_another_attempt() -> None:
    error = Failure.NO_ROOM.error(evidence="0/1 nodes")
    assert isinstance(error, TransientError)
    assert "tried again by itself" in error.sentence
    final = given_up(error, 4, FailedTask.what_next)
    assert "again by itself" not in final.sentence
    assert "It was tried 4 times." in final.sentence
    assert (final.failure, final.evidence) == (Failure.NO_ROOM, "0/1 nodes")
    assert "It was tried once." in given_up(error, 1, FailedTask.what_next).sentence


def test_a_stop_that_is_given_up_asks_nobody_to_start_anything() -> None:
    error = Failure.SLOW_STOP.error()
    assert isinstance(error, TransientError)
    sentence = given_up(error, 4, FailedDelete.what_next).sentence
    assert "start" not in sentence
    assert "asked for again" in sentence


def test_a_change_of_resources_that_is_given_up_leaves_the_lab_as_it_was() -> None:
    error = Failure.CLUSTER_AWAY.error()
    assert isinstance(error, TransientError)
    assert given_up(error, 4, FailedResize.what_next).sentence.endswith(
        "It was tried 4 times. The lab goes on as it was; the administrator must look at it."
    )


def test_the_evidence_is_bounded_and_storable() -> None:
    error = Failure.INTERNAL_ERROR.error(evidence="\x00\ud800" + "x" * 10_000)
    assert len(error.evidence) == 2000
    assert error.evidence.startswith("\\x00\\ud800")


def test_a_sentence_has_no_password_and_keeps_the_names_of_images() -> None:
    for image in ("https://teacher:hunter2@registry.example/lab:1", "teacher:hunter2@registry.example/lab"):
        assert "hunter2" not in str(Failure.PROGRAM_ENDS.error(image=image))
    assert (
        '"registry.example/token:1"' in Failure.PROGRAM_ENDS.error(image="registry.example/token:1").sentence
    )


def test_what_is_too_long_is_cut_before_it_is_searched_for_secrets() -> None:
    def seconds(evidence: str) -> float:
        started = time.process_time()
        Failure.INTERNAL_ERROR.error(evidence=evidence)
        return time.process_time() - started

    short, long = "(a:" * 3_000, "(a:" * 3_000_000
    assert min(seconds(long) for _ in range(3)) < 10 * min(seconds(short) for _ in range(3)) + 0.01
