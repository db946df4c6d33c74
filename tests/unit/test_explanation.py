"""`autolabs explain`: every state of a lab's life, who acts, what comes next, what to run."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import NamedTuple

import pytest

from dispatcher.__main__ import make_parser
from dispatcher.categories import Audience
from dispatcher.expiry import cleanup_task_id
from dispatcher.explain.explanation import explain
from dispatcher.explain.facts import LabFacts, Refused
from dispatcher.explain.reason import BACKEND_CAUSES
from dispatcher.limits import CONTAINER_DEADLINE_S
from jobs.failures import Failure
from tests.support.explained import (
    CREATE,
    at,
    cancelled,
    failed_run,
    make_action,
    make_facts,
    make_lab,
    make_notification,
    make_row,
    make_run,
    sight,
)

PENDING, RUNNING, FAILED, STOPPED = map(make_lab, ("PENDING", "RUNNING", "FAILED", "STOPPED"))
YOUNG = make_lab(age_s=20)
STOPPING = make_lab("RUNNING", age_s=4000, stop_requested_at=at(300))
ROOM, INVALID = "TEMPORARY_RESOURCE_ERROR", "PERMANENT_INVALID_REQUEST"
RETRIED = failed_run("no_room", ROOM, "retried", details={"retry_delay_s": 20.0})
BLOCKED = make_row(600, failures=3, last_error="no queue\x1b[31m", next_attempt_at=at(-30))
DEAD_DELETE = failed_run("cluster_away", "TEMPORARY_NETWORK_ERROR", "dead_lettered", delete=True, ago_s=290)
DEAD_CREATE = failed_run("internal_error", INVALID, "dead_lettered", ago_s=200)


class Case(NamedTuple):
    facts: LabFacts
    situation: str
    who: str
    next: str
    command: str | None = None


CASES = {
    # PENDING: the way to a container.
    "in the outbox": Case(
        make_facts(YOUNG, outbox=(make_row(),)), "outbox_waiting", "nobody", "within a minute", "outbox list"
    ),
    "a first failure in the outbox": Case(
        make_facts(YOUNG, outbox=(make_row(failures=1, last_error="away"),)),
        "outbox_failing", "nobody", "not be published: away; tried again within a minute", "outbox list",
    ),
    "failing in the outbox": Case(
        make_facts(PENDING, outbox=(BLOCKED,)),
        "outbox_failing", "administrator", r"no queue\x1b[31m; tried again in 30 s", "outbox list",
    ),
    "never to be published": Case(
        make_facts(PENDING, outbox=(replace(BLOCKED, failures=40),)),
        "outbox_failing", "administrator", "it failed 40 times: discard it", "autolabs outbox discard 5",
    ),
    "behind another row of the lab": Case(
        make_facts(PENDING, outbox=(replace(BLOCKED, id=4, task_id="other", task_name="odd"), make_row(300))),
        "outbox_failing", "administrator", "row 4 of the outbox, which it waits for,", "outbox list",
    ),
    "nobody publishes the outbox": Case(
        make_facts(PENDING, outbox=(make_row(600),)),
        "outbox_unattended", "administrator", "for 10 minutes and nobody publishes", "outbox relay --once",
    ),
    "published, its row not yet deleted": Case(
        make_facts(PENDING, make_run("started"), outbox=(make_row(),)),
        "at_work", "nobody", "a container has been at it for 10 s", "job/lab-operations-x7k2p",
    ),
    "no trace, young": Case(make_facts(YOUNG), "young", "nobody", "on its way to a container"),
    "no trace, old, queue not looked at": Case(
        make_facts(PENDING), "no_trace", "backend",
        "waits in celery.lab_operations, on the delay ladder or in celery.dlq, or the backend died",
        "dlq list --lab 17",
    ),
    "no trace, old, broker away": Case(
        make_facts(PENDING, queue=sight(problem="refused", messages=None)),
        "no_trace", "backend", "(celery.lab_operations was not looked at: refused)", "scaledjobs",
    ),
    "no trace, old, queue empty": Case(
        make_facts(PENDING, queue=sight(0, 1)), "no_trace", "backend",
        "a container holds it that could not write to the ledger yet, or it was not published", "dlq list",
    ),
    "no trace, dead letters": Case(
        make_facts(PENDING, queue=sight(0, 1, dead=3)), "no_trace", "administrator",
        "elsewhere 3 messages are in celery.dlq, which may be of other labs", "autolabs dlq list --lab 17",
    ),
    "no trace, messages for later": Case(
        make_facts(PENDING, queue=sight(0, 1, delayed=1)), "no_trace", "backend",
        "elsewhere 1 message is on the delay ladder, for later, which may be", "autolabs dlq list --lab 17",
    ),
    "no trace, dead letters not counted": Case(
        make_facts(PENDING, queue=sight(0, 1, dead=None)), "no_trace", "backend",
        "an unknown number of messages is in celery.dlq", "autolabs dlq list --lab 17",
    ),
    "in a queue that is served": Case(
        make_facts(PENDING, queue=sight(7, 2)), "in_queue", "nobody",
        "7 messages wait in celery.lab_operations, containers take them", "scaledjobs",
    ),
    "in a queue that nobody serves": Case(
        make_facts(PENDING, queue=sight(1)), "in_queue", "administrator",
        "1 message waits in celery.lab_operations and no container is free", "scaledjobs",
    ),
    "cancelled before it began": Case(
        make_facts(PENDING, cancellations=(cancelled(),), queue=sight(3)), "cancelled", "nobody",
        "was cancelled: the container that takes the message makes the lab STOPPED",
    ),
    # PENDING: begun.
    "at work": Case(
        make_facts(PENDING, make_run("started", details={"steps": {"rendered": 0.1, "applied": 0.2}})),
        "at_work", "nobody", "for 10 s; step reached: applied; if it dies", "kubectl logs -n platform job/",
    ),
    "at work and cancelled": Case(
        make_facts(PENDING, make_run("started"), cancellations=(cancelled(),)),
        "at_work", "nobody", "cancelled since and ends at its next step", "kubectl logs",
    ),
    "killed and taken again": Case(
        make_facts(PENDING, make_run("started", ago_s=90), make_run("started", id=2, redelivered=True)),
        "at_work", "nobody", "for 10 s", "kubectl logs",
    ),
    "surely dead": Case(
        make_facts(PENDING, make_run("started", ago_s=CONTAINER_DEADLINE_S + 60)),
        "lost", "administrator", "none lives longer than 20 minutes, and nobody took", "autolabs dlq list",
    ),
    "surely dead, queue empty": Case(
        make_facts(PENDING, make_run("started", ago_s=9000), queue=sight(0)),
        "lost", "administrator", "its queue is empty, so it is in celery.dlq or gone", "scaledjobs",
    ),
    "waits for its retry": Case(
        make_facts(PENDING, RETRIED), "retry_waits", "nobody", "tried again in about 12 s", "kubectl logs"
    ),
    "waits for its retry, its row in the outbox not yet deleted": Case(
        make_facts(PENDING, RETRIED, outbox=(make_row(20),)), "retry_waits", "nobody", "in about 12 s"
    ),
    "published again under its id": Case(
        make_facts(PENDING, DEAD_CREATE, outbox=(make_row(),)), "outbox_waiting", "nobody", "within a minute"
    ),
    "requeued, and tried again since": Case(
        make_facts(PENDING, RETRIED, actions=(make_action("requeued", ago_s=60),)),
        "retry_waits", "nobody", "in about 12 s",
    ),
    "comes back, the ledger does not say when": Case(
        make_facts(PENDING, replace(RETRIED, details={})), "retry_waits", "nobody", "in about 72 s"
    ),
    "waits for its retry, cancelled": Case(
        make_facts(PENDING, RETRIED, cancellations=(cancelled(),)),
        "retry_waits", "nobody", "a container finds that in 12 s, and does not begin it again",
    ),
    "its retry is due": Case(
        make_facts(PENDING, replace(RETRIED, finished_at=at(30)), queue=sight(0, 1)),
        "retry_due", "nobody", "was due 10 s ago: the next free container takes it (no message waits",
    ),
    "its retry is overdue": Case(
        make_facts(PENDING, replace(RETRIED, claimed_at=at(700), finished_at=at(620)), queue=sight(1)),
        "retry_overdue", "administrator", "due 10 minutes ago and no container took it (1", "scaledjobs",
    ),
    "dead-lettered, and the lab does not know": Case(
        make_facts(PENDING, failed_run("message_unreadable", INVALID, "dead_lettered", task_name="")),
        "dead_lettered", "backend", "its message is in celery.dlq", f"autolabs dlq show {CREATE}",
    ),
    "requeued": Case(
        make_facts(PENDING, actions=(make_action("requeued"),)),
        "requeued", "nobody", "put back from celery.dlq by anna@console",
    ),
    "requeued, and nobody takes it": Case(
        make_facts(PENDING, DEAD_CREATE, actions=(make_action("requeued", ago_s=100),), queue=sight(2)),
        "requeued", "administrator", "no container took it yet (2 messages", "scaledjobs",
    ),
    "requeued and taken": Case(
        make_facts(PENDING, make_run("started"), actions=(make_action("requeued", ago_s=60),)),
        "at_work", "nobody", "a container has been at it",
    ),
    "requeued, while a stop was discarded": Case(
        make_facts(PENDING, actions=(make_action("requeued"), make_action("discarded", delete=True))),
        "requeued", "nobody", "put back from celery.dlq",
    ),
    "discarded": Case(
        make_facts(PENDING, actions=(make_action("discarded"),)),
        "discarded", "backend", "discarded by anna@console; nothing more happens by itself",
    ),
    "a stop that was refused before it began": Case(
        make_facts(PENDING, make_run("started", ago_s=290), replace(DEAD_DELETE, id=2)),
        "at_work", "nobody", "for 5 minutes",
    ),
    "over in the ledger alone": Case(
        make_facts(PENDING, make_run("noop")), "contradiction", "administrator", "(noop)", "autolabs verify"
    ),
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
        "running", "administrator", "No health check looked at it for 12 minutes, does it run?",
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
        make_facts(replace(RUNNING, expires_at=at(400)), cleanup_refused=Refused(at(20), "too_many_at_once")),
        "cleanup_refused", "administrator",
        "but the cleanup refused to end any lab 20 s ago (too_many_at_once): its history says why",
        "schedule run-now cleanup-timeout-labs --force",
    ),
    "past its end since the cleanup refused": Case(
        make_facts(replace(RUNNING, expires_at=at(10)), cleanup_refused=Refused(at(20), "clocks_differ")),
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
        "asked for 18 minutes ago and nothing did it (no message waits in celery.lab_operations): the cleanup"
        " asks again within 5 minutes", "scaledjobs",
    ),
    "its stop was forgotten": Case(
        make_facts(replace(STOPPING, stop_requested_at=at(7200))),
        "stop_forgotten", "administrator", "should have asked again since: does it run?",
        "schedule history cleanup-timeout-labs",
    ),
    "its stop waits for a cleanup that refuses": Case(
        make_facts(
            replace(STOPPING, stop_requested_at=at(7200)), cleanup_refused=Refused(at(20), "clocks_differ")
        ),
        "cleanup_refused", "administrator", "refused to end any lab 20 s ago (clocks_differ)", "--force",
    ),
    "its stop was dead-lettered": Case(
        make_facts(STOPPING, DEAD_DELETE), "stop_unattended", "administrator",
        "its message is in celery.dlq: the cleanup asks again within 15 minutes", "dlq show task-delete",
    ),
    "its stop was requeued": Case(
        make_facts(STOPPING, DEAD_DELETE, actions=(make_action("requeued", delete=True),)),
        "requeued", "nobody", "put back from celery.dlq",
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
        make_facts(STOPPED, make_run("revoked")), "start_cancelled", "nobody", "a new one is a new row"
    ),
    # No row.
    "no row": Case(make_facts(None, make_run("noop")), "no_row", "backend", "never committed", "dlq list"),
    "no row yet": Case(
        make_facts(None, failed_run("lab_unknown", INVALID, "retried", details={"retry_delay_s": 20.0})),
        "no_row", "backend", "Of the create: it is tried again in about 12 s", "kubectl logs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_state_has_who_acts_what_comes_next_and_what_to_run(case: Case) -> None:
    found = explain(case.facts)
    assert (found.situation, found.who.value) == (case.situation, case.who)
    assert case.next in found.next
    for command in found.commands:
        program, *arguments = shlex.split(command)
        assert program in ("autolabs", "kubectl")
        if program == "autolabs":
            assert make_parser().parse_args(arguments).run
    if case.command == "":
        assert found.commands == ()
    elif case.command:
        assert any(case.command in command for command in found.commands), found.commands


@pytest.mark.parametrize("failure", Failure, ids=lambda failure: failure.cause)
@pytest.mark.parametrize("notified", [True, False], ids=["notified", "no notification"])
def test_who_acts_is_whom_the_classification_tells(failure: Failure, notified: bool) -> None:
    run = failed_run(failure.cause, failure.category.value)
    rows = (make_notification(told=failure.told.value, cause=failure.cause),) if notified else ()
    expected = {Audience.TEACHER: "teacher", Audience.ADMIN: "administrator", Audience.NOBODY: "nobody"}
    by_backend = failure.cause in BACKEND_CAUSES
    found = explain(make_facts(FAILED, run, notifications=rows))
    assert found.who.value == ("backend" if by_backend else expected[failure.told])


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
