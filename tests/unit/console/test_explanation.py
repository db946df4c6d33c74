"""`autolabs explain` of a lab that runs, is to be stopped or is over; and the sentences about any lab."""

from __future__ import annotations

from dataclasses import replace

import pytest

from console.explain.explanation import explain
from console.explain.facts import CleanupRefusal, LabFacts
from console.explain.reason import BACKEND_FAILURES
from dispatcher.failure_contract import Audience
from dispatcher.lab_time import cleanup_task_id
from jobs.failures import Failure
from tests.support.labs.explained import (
    DEAD_DELETE,
    FAILED,
    INVALID,
    PENDING,
    RETRIED,
    ROOM,
    RUNNING,
    STOPPED,
    Case,
    at,
    failed_run,
    make_action,
    make_facts,
    make_lab,
    make_notification,
    make_row,
    make_run,
    sight,
)

NO_CLEANUP = CleanupRefusal(at(20), "clocks_differ")
STOPPING = make_lab("RUNNING", age_s=4000, stop_requested_at=at(300))

CASES = {
    # RUNNING.
    "running": Case(
        make_facts(RUNNING, make_run("succeeded", ago_s=300)),
        "running", "nobody", "the cleanup stops it at 10:05:00 (expires_at), in 60 minutes",
        "kubectl get pod -n labs lab-instance-17-demo",
    ),
    "near its end": Case(
        make_facts(replace(RUNNING, expires_at=at(-120))),
        "running_near_end", "nobody", "in 2 minutes, unless the backend extends it",
    ),
    "running, to be extended": Case(
        make_facts(replace(RUNNING, max_expires_at=at(-7200))),
        "running", "nobody", "unless it is extended, which may be until 11:05:00. The last health check was",
        "autolabs verify 17",
    ),
    "running, extended to the last": Case(
        make_facts(replace(RUNNING, max_expires_at=RUNNING.expires_at)),
        "running", "nobody", "it was extended as far as it may be",
    ),
    "running, and nobody checks its health": Case(
        make_facts(RUNNING, health_checked_at=at(700)),
        "running", "administrator", "No health check looked at it for 12 minutes: check that it runs.",
        "autolabs schedule list",
    ),
    "running without its Service": Case(
        make_facts(RUNNING, notifications=(make_notification(event_type="lab.unreachable", told="admin"),)),
        "running", "administrator",
        "4 minutes ago a sync found that nobody can reach it, as its Service was gone",
        "autolabs verify 17",
    ),
    "lost and started again": Case(
        make_facts(FAILED, failed_run("node_away", ROOM), restarted_as=18),
        "restarted", "nobody", "lab 18 was started in its place", "autolabs explain 18",
    ),
    "past its end": Case(
        make_facts(replace(RUNNING, expires_at=at(120))),
        "running_past_end", "nobody", "the next cleanup stops it, within 5 minutes",
    ),
    "long past its end": Case(
        make_facts(replace(RUNNING, expires_at=at(1800))),
        "cleanup_missing", "administrator", "30 minutes ago, and no cleanup stopped it",
        "schedule run-now cleanup-timeout-labs",
    ),
    "past its end, and the cleanup refuses": Case(
        make_facts(
            replace(RUNNING, expires_at=at(400)), cleanup_refused=CleanupRefusal(at(20), "too_many_at_once")
        ),
        "cleanup_refused", "administrator",
        "but the cleanup refused to end any lab 20 s ago (too_many_at_once): its history says why",
        "schedule run-now cleanup-timeout-labs --force",
    ),
    "past its end since the cleanup refused": Case(
        make_facts(replace(RUNNING, expires_at=at(10)), cleanup_refused=NO_CLEANUP),
        "running_past_end", "nobody", "the next cleanup stops it",
    ),
    "never to end": Case(
        make_facts(replace(RUNNING, expires_at=at(-10**8), k8s_pod_name=None)),
        "running", "nobody", "2030-01-21 18:51 (expires_at), in 1157 days",
    ),
    # To be stopped.
    "its stop is in the outbox": Case(
        make_facts(RUNNING, outbox=(make_row(task_id="d", task_name=DEAD_DELETE.task_name),)),
        "outbox_waiting", "nobody", "within a minute",
    ),
    "its stop is at work": Case(
        make_facts(STOPPING, make_run("started", delete=True)), "at_work", "nobody", "for 10 s"
    ),
    "its stop is tried again": Case(
        make_facts(STOPPING, replace(DEAD_DELETE, outcome="retried", finished_at=at(5))),
        "retry_waits", "nobody", "in about 75 s",
    ),
    "its stop was just asked for": Case(
        make_facts(replace(STOPPING, stop_requested_at=at(4))),
        "stop_asked", "nobody", "asked for 4.0 s ago: a container does it in a moment",
    ),
    "its stop is not done": Case(
        make_facts(replace(STOPPING, stop_requested_at=at(1080)), queue=sight(0)),
        "stop_unattended", "administrator",
        "asked for 18 minutes ago and no container did it (no message waits in celery.lab_operations): the"
        " cleanup asks again within 5 minutes", "scaledjobs",
    ),
    "its stop was forgotten": Case(
        make_facts(replace(STOPPING, stop_requested_at=at(7200))),
        "stop_forgotten", "administrator", "should have asked again since: check that it runs",
        "schedule history cleanup-timeout-labs",
    ),
    "its stop waits for a cleanup that refuses": Case(
        make_facts(
            replace(STOPPING, stop_requested_at=at(7200)), cleanup_refused=NO_CLEANUP
        ),
        "cleanup_refused", "administrator", "refused to end any lab 20 s ago (clocks_differ)", "--force",
    ),
    "its stop was dead-lettered": Case(
        make_facts(STOPPING, DEAD_DELETE), "stop_unattended", "administrator",
        "its message is in celery.dlq: the cleanup asks again within 15 minutes", "dlq show task-delete",
    ),
    "its stop was requeued": Case(
        make_facts(STOPPING, DEAD_DELETE, actions=(make_action("requeued", delete=True),)),
        "requeued", "nobody", "requeued from celery.dlq",
    ),
    "its stop was discarded": Case(
        make_facts(STOPPING, DEAD_DELETE, actions=(make_action("discarded", delete=True),)),
        "stop_unattended", "administrator", "was discarded by anna@console: the cleanup asks again",
    ),
    "its stop was refused": Case(
        make_facts(RUNNING, failed_run("wrong_pod", INVALID, "dead_lettered", delete=True)),
        "stop_refused", "administrator", "the lab goes on until the cleanup stops it at 10:05:00",
        "dlq show task-delete",
    ),
    "its stop was not a valid request": Case(
        make_facts(RUNNING, failed_run("request_invalid", INVALID, "dead_lettered", delete=True)),
        "stop_refused", "backend", "its stop was refused", "dlq show",
    ),
    "not to be started any more": Case(
        make_facts(make_lab(stop_requested_at=at(4)), RETRIED), "stop_asked", "nobody", "in a moment"
    ),
    # Over.
    "failed": Case(
        make_facts(FAILED, failed_run("image_not_loadable", "PERMANENT_IMAGE_ERROR", ago_s=245)),
        "failed", "teacher", "nothing more happens by itself, a lab that FAILED is not tried again: once the"
        " teacher", "kubectl logs",
    ),
    "failed, its log is gone": Case(
        make_facts(FAILED, failed_run("no_room", ROOM, "dead_lettered", ago_s=9000)),
        "failed", "administrator", "once the administrator has looked at it", "autolabs dlq show",
    ),
    "failed, the request was wrong": Case(
        make_facts(FAILED, failed_run("request_invalid", INVALID)), "failed", "backend", "a valid request"
    ),
    "failed, and kept to be looked at": Case(
        make_facts(FAILED, failed_run("no_room", ROOM, ago_s=245, details={"objects_kept_s": 600})),
        "failed", "administrator", "; its Pod can be looked at for another 6 minutes",
        "kubectl describe pod -n labs -l lab_instance_id=17",
    ),
    "failed, its Pod was kept and is gone": Case(
        make_facts(FAILED, failed_run("no_room", ROOM, ago_s=245, details={"objects_kept_s": 60})),
        "failed", "administrator", "start a new lab", "kubectl logs",
    ),
    "failed, nothing but the row is known": Case(make_facts(FAILED), "failed", "teacher", "nothing more"),
    "expired": Case(
        make_facts(FAILED, failed_run("expired", ROOM, "revoked")), "expired", "nobody", "start a new lab"
    ),
    "failed and being stopped": Case(
        make_facts(FAILED, make_run("started", delete=True, id=2)), "at_work", "nobody", "for 10 s"
    ),
    "failed, its stop was dead-lettered": Case(
        make_facts(FAILED, DEAD_DELETE, failed_run("image_not_loadable", "PERMANENT_IMAGE_ERROR", id=2)),
        "failed", "teacher", "nothing more happens",
    ),
    "stopped": Case(
        make_facts(STOPPED, make_run("succeeded", delete=True)), "stopped", "nobody", "nothing", ""
    ),
    "failed, then stopped": Case(
        make_facts(replace(STOPPED, failed_at=at(100), error_message="The image is wrong.")),
        "failed_then_stopped", "nobody", "nothing",
    ),
    "cancelled": Case(
        make_facts(STOPPED, make_run("revoked")), "start_cancelled", "nobody", "ask the backend for a new one"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_state_has_who_acts_what_comes_next_and_what_to_run(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("failure", Failure, ids=lambda failure: failure.cause)
@pytest.mark.parametrize("notified", [True, False], ids=["notified", "no notification"])
def test_who_acts_is_whom_the_classification_tells(failure: Failure, notified: bool) -> None:
    run = failed_run(failure.cause, failure.category.value)
    rows = (make_notification(told=failure.audience.value, cause=failure.cause),) if notified else ()
    expected = {Audience.TEACHER: "teacher", Audience.ADMIN: "administrator", Audience.NOBODY: "nobody"}
    by_backend = failure in BACKEND_FAILURES
    found = explain(make_facts(FAILED, run, notifications=rows))
    assert found.who.value == ("backend" if by_backend else expected[failure.audience])


@pytest.mark.parametrize(
    ("facts", "headline"),
    [
        (make_facts(PENDING), "Lab 17 (lab 3 of student 42) has been PENDING for 5 minutes."),
        (make_facts(RUNNING), "has been RUNNING for 5 minutes."),
        (make_facts(STOPPING), "for 67 minutes; its stop was asked for 5 minutes ago."),
        (make_facts(FAILED), "Lab 17 (lab 3 of student 42) FAILED 4 minutes ago."),
        (make_facts(replace(FAILED, failed_at=None)), "Lab 17 (lab 3 of student 42) FAILED."),
        (make_facts(STOPPED), "was STOPPED 60 s ago, but by no task in the ledger."),
        (make_facts(STOPPED, make_run("succeeded", delete=True)), "by the delete task task-delete."),
        (
            make_facts(STOPPED, make_run("succeeded", delete=True, task_id=cleanup_task_id(17, None))),
            "by the cleanup, because its time was over.",
        ),
        (make_facts(STOPPED, make_run("revoked")), "because its start was cancelled."),
        (make_facts(None), "Lab 17 is not in the database, though tasks are about it."),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_the_headline_says_the_status_in_a_sentence(facts: LabFacts, headline: str) -> None:
    assert explain(facts).headline.endswith(headline)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"published_at": at(200), "webhook_at": at(199)}, "event published 3 minutes ago, webhook called"),
        ({"created_at": at(9)}, "event waits, webhook waits"),
        ({}, "event waits, webhook waits for 4 minutes: does the CronJob outbox run?"),
        (
            {"failures": 2, "last_error": "503\x07", "next_attempt_at": at(-20), "published_at": at(9)},
            r"event published 9.0 s ago, webhook waits; failed 2 times: 503\x07; again in 20 s",
        ),
        ({"told": "nobody", "cause": "expired"}, "nobody (expired): nobody has to be told"),
    ],
    ids=["told", "waits", "nobody sweeps", "fails", "nobody"],
)
def test_whether_they_were_told_is_said(changes: dict[str, object], told: str) -> None:
    (line,) = explain(make_facts(FAILED, notifications=(make_notification(**changes),))).told
    assert told in line


def test_a_failure_that_nobody_was_told_of_is_said_to_be_so() -> None:
    assert explain(make_facts(FAILED)).told == (
        "nobody was notified of the failure: there is no record of it",
    )
    assert explain(make_facts(FAILED, failed_run("expired", ROOM, "revoked"))).told == ()
    assert explain(make_facts(RUNNING)).told == ()
