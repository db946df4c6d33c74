"""`autolabs explain` of a lab that is PENDING or has no row: its way to a container, and what stops it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.failure_contract import CONTAINER_DEADLINE_S
from tests.support.labs.explained import (
    CREATE,
    DEAD_DELETE,
    INVALID,
    PENDING,
    RETRIED,
    Case,
    at,
    cancelled,
    failed_run,
    make_action,
    make_facts,
    make_lab,
    make_row,
    make_run,
    sight,
)

YOUNG = make_lab(age_s=20)
BLOCKED = make_row(600, failures=3, last_error="no queue\x1b[31m", next_attempt_at=at(-30))
DEAD_CREATE = failed_run("internal_error", INVALID, "dead_lettered", ago_s=200)

CASES = {
    # The way to a container.
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
        "at_work", "nobody", "a container has been working on it for 10 s", "job/lab-operations-x7k2p",
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
    # Begun.
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
        "retry_waits", "nobody", "the container that takes it in 12 s does not start it again",
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
        "requeued", "nobody", "requeued from celery.dlq by anna@console",
    ),
    "requeued, and nobody takes it": Case(
        make_facts(PENDING, DEAD_CREATE, actions=(make_action("requeued", ago_s=100),), queue=sight(2)),
        "requeued", "administrator", "no container took it yet (2 messages", "scaledjobs",
    ),
    "requeued and taken": Case(
        make_facts(PENDING, make_run("started"), actions=(make_action("requeued", ago_s=60),)),
        "at_work", "nobody", "a container has been working on it",
    ),
    "requeued, while a stop was discarded": Case(
        make_facts(PENDING, actions=(make_action("requeued"), make_action("discarded", delete=True))),
        "requeued", "nobody", "requeued from celery.dlq",
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
    # No row.
    "no row": Case(make_facts(None, make_run("noop")), "no_row", "backend", "never committed", "dlq list"),
    "no row yet": Case(
        make_facts(None, failed_run("lab_unknown", INVALID, "retried", details={"retry_delay_s": 20.0})),
        "no_row", "backend", "Of the create: it is tried again in about 12 s", "kubectl logs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_state_has_who_acts_what_comes_next_and_what_to_run(case: Case) -> None:
    case.check()
