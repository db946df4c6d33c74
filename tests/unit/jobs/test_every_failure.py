"""Every row of the classification table is provoked by a test, and made in no other place."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from jobs.failures import Failure
from tests.support.labs.failing_labs import LABS
from tests.support.labs.failing_tasks import TASKS

ROOT = Path(__file__).parents[3]

#: Rows that tests/cluster/test_failure_causes.py provokes, each in a container on the real servers.
REAL = {case.failure for case in (LABS | TASKS).values()}
#: Rows that other tests on the real servers provoke.
_HEALTH = "tests/cluster/test_health_on_the_cluster.py::"
_RETRIES = "tests/cluster/test_failure_retries.py::"
_RESIZES = "tests/cluster/test_resize_on_the_cluster.py::"
ALSO_REAL = {
    Failure.POD_EVICTED: f"{_HEALTH}test_a_node_without_room_and_a_node_that_is_away_are_told_apart",
    Failure.NODE_AWAY: f"{_HEALTH}test_a_node_without_room_and_a_node_that_is_away_are_told_apart",
    Failure.PROGRAM_ENDED: f"{_HEALTH}test_a_program_that_ended_for_good_is_found",
    Failure.PROGRAM_CRASHES: f"{_HEALTH}test_programs_that_end_again_and_again_are_found",
    Failure.STOPPED_ANSWERING: (
        f"{_HEALTH}test_a_program_that_does_not_answer_any_more_is_found_after_the_limit"
    ),
    Failure.QUOTA_EXCEEDED: f"{_RETRIES}test_a_full_quota_is_waited_for_with_growing_delays",
    Failure.LAB_NOT_STARTED: f"{_RESIZES}test_a_lab_that_has_not_started_is_waited_for",
    Failure.RESIZE_OVER_QUOTA: f"{_RESIZES}test_a_full_quota_is_waited_for_and_then_given_up",
    Failure.RESIZE_INFEASIBLE: f"{_RESIZES}test_more_than_the_node_has_is_refused_and_taken_back",
    Failure.RESIZE_DEFERRED: f"{_RESIZES}test_more_than_the_node_has_free_is_refused_after_a_while",
    Failure.RESIZE_BELOW_USE: f"{_RESIZES}test_less_memory_than_is_in_use_is_refused_and_taken_back",
    Failure.RESIZE_REFUSED: f"{_RESIZES}test_more_than_the_limit_range_allows_is_refused",
    Failure.RESIZE_STUCK: f"{_RESIZES}test_a_node_that_says_nothing_is_waited_for_no_longer_than_allowed",
}
#: Rows that only tests with a scripted API server provoke, and why.
_VERIFY = "tests/integration/jobs/verify/test_verify.py::"
_CLEANUP = "tests/integration/jobs/checks/test_cleanup"
SCRIPTED = {
    Failure.STORE_REFUSES_REQUEST: (
        "tests/unit/jobs/config/test_store_answers.py::test_a_refusal_tells_the_code_of_the_store",
        "a store that refuses is scripted: MinIO refuses few requests of ours",
    ),
    Failure.STORE_UNTRUSTED: (
        "tests/unit/dispatcher/test_trust.py::test_a_store_that_is_not_trusted_is_no_store_that_is_away",
        "a TLS server of the test, with an authority that nobody trusts",
    ),
    Failure.DATABASE_UNTRUSTED: (
        "tests/unit/dispatcher/test_trust.py::test_a_database_that_is_not_trusted_is_no_database_that_is_away",
        "a TLS server of the test, which speaks PostgreSQL until the handshake",
    ),
    Failure.NEVER_STARTED: (
        f"{_CLEANUP}.py::test_a_lab_that_never_became_usable_says_so_and_what_is_left_of_it_goes",
        "no task fails so: the cleanup finds the lab, and needs no cluster for it",
    ),
    Failure.CLOCKS_DIFFER: (
        f"{_CLEANUP}_brake.py::test_a_container_whose_clock_is_wrong_ends_nothing",
        "as the row before, with a container whose clock the test shifts",
    ),
    Failure.REQUEST_LOST: (
        f"{_VERIFY}test_repairs_leave_a_clean_platform",
        "no task fails so: `autolabs verify` finds the lab, in a state that the tests write into real"
        " PostgreSQL and RabbitMQ",
    ),
    Failure.POD_GONE: (
        f"{_VERIFY}test_repairs_leave_a_clean_platform",
        "as the row before",
    ),
    Failure.OBJECT_GONE: (
        f"{_VERIFY}test_repairs_leave_a_clean_platform",
        "as the row before",
    ),
    Failure.TOO_MANY_AT_ONCE: (
        "tests/integration/jobs/checks/test_sync.py::test_it_refuses_to_repair_too_many_labs_at_once",
        "no task about one lab fails so: a platform of many labs, in a state that the test writes",
    ),
}


@pytest.mark.parametrize("failure", Failure, ids=lambda failure: failure.cause)
def test_every_row_is_provoked_by_a_test(failure: Failure) -> None:
    named = [failure in REAL, failure in ALSO_REAL, failure in SCRIPTED]
    assert sum(named) == 1, "a row needs a case in tests/support/failing_*.py, or a test and a reason here"


@pytest.mark.parametrize(
    ("failure", "test"),
    [*ALSO_REAL.items(), *((failure, test) for failure, (test, _) in SCRIPTED.items())],
    ids=lambda value: value.cause if isinstance(value, Failure) else "",
)
def test_a_test_that_is_named_speaks_of_its_row(failure: Failure, test: str) -> None:
    path, _, name = test.partition("::")
    source = (ROOT / path).read_text()
    functions = [
        ast.get_source_segment(source, node) or ""
        for node in ast.walk(_tree(ROOT / path))
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    assert len(functions) == 1, f"{test} is not there"
    assert failure.cause in functions[0] or f"Failure.{failure.name}" in functions[0]


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_errors_are_made_by_the_table_alone() -> None:
    makers = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in ("dispatcher", "jobs", "cronjobs", "console")
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call)
        and (node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""))
        in ("JobError", "ObjectsLeft", "PermanentError", "TransientError")
    ]
    assert [maker for maker in makers if not maker.startswith(("jobs/failures.py:", "jobs/errors.py:"))] == []
    assert len(makers) == 5, "what is looked for must be found where it may be"
