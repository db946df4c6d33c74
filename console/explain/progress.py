"""Tell how far the task of a start or a stop has come: on its way, at work, or lost.

console.explain.start and console.explain.stop ask it first, and use its words.
"""

from __future__ import annotations

import enum
import shlex
from dataclasses import dataclass
from datetime import timedelta

from console.explain.facts import ActionRow, LabFacts, Operation, Run, WaitingRow
from dispatcher.broker.topology import QUEUE_HIGH, QUEUE_NORMAL
from dispatcher.failure_contract import COME_BACK_S, CONTAINER_DEADLINE_S
from dispatcher.wording import ago, duration, many, one_line

#: Seconds within which a healthy platform has done the next thing; the outbox is swept once a minute.
YOUNG_S, SWEPT_S = 60, 120
#: Seconds for which a finished Job, and with it its log, is kept (keda.scaledjob).
LOG_KEPT_S = 3600
#: A task that failed so often in the outbox will hardly ever be published.
MANY_FAILURES = 10

SCALEDJOBS = "kubectl get scaledjobs,jobs -n platform"
DEAD_LETTERS = "autolabs dlq list"
OUTBOX_LIST = "autolabs outbox list"
IN_DLQ = "its message is in celery.dlq"


class Actor(str, enum.Enum):
    """Who has to do something now."""

    TEACHER = "teacher"
    ADMINISTRATOR = "administrator"
    #: Whoever writes lab_instances and publishes tasks.
    BACKEND = "backend"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class Outlook:
    """What follows: a stable name of the situation, who acts, what happens next, what to run."""

    situation: str
    who: Actor
    next: str
    commands: tuple[str, ...] = ()


def progress(facts: LabFacts, operation: Operation) -> Outlook | ActionRow | Run | None:
    """Return what follows from a task that is on its way, else what ended it: a discard, or its last run.

    The newest thing that happened to any task of the operation decides. None: there is no trace of one.
    """
    runs = facts.runs_of(operation)
    for run in reversed(runs):
        if _is_open(facts, run) and facts.age_s(run.claimed_at) < CONTAINER_DEADLINE_S:
            return _at_work(facts, operation, run)
    for row in facts.outbox:
        # A row whose task was begun since was published; only its deletion is missing.
        begun = any(run.task_id == row.task_id and run.claimed_at >= row.created_at for run in runs)
        if facts.operation_of(row.task_name, row.task_id) is operation and not begun:
            return _in_outbox(facts, row)
    last = runs[-1] if runs else None
    for action in reversed(facts.actions):
        is_newest = last is None or action.acted_at > last.claimed_at
        if is_newest and facts.operation_of(action.task_name, action.task_id) is operation:
            return _requeued(facts, action) if action.action == "requeued" else action
    if last is None:
        return None
    if _is_open(facts, last):
        return _lost(facts, last)
    return _retried(facts, operation, last) if last.outcome == "retried" else last


def queue_of(operation: Operation) -> str:
    return QUEUE_NORMAL if operation is Operation.CREATE else QUEUE_HIGH


def discarded_by(action: ActionRow) -> str:
    """Return the part of a sentence that says who discarded the message."""
    return f"its message was discarded by {one_line(action.actor, 80)}"


def show_dead_letter(run: Run | None) -> tuple[str, ...]:
    """Return the command that shows the dead letter of a run, or nothing if it left none."""
    return (f"autolabs dlq show {argument(run.task_id)}",) if run and run.outcome == "dead_lettered" else ()


def logs_of(facts: LabFacts, run: Run | None) -> tuple[str, ...]:
    """Return the command that shows the log of a run, or nothing when its Job is gone."""
    if run is None or not run.job_name:
        return ()
    if facts.age_s(run.finished_at or run.claimed_at) > LOG_KEPT_S + CONTAINER_DEADLINE_S:
        return ()
    return (f"kubectl logs -n platform job/{argument(run.job_name)}",)


def queue_note(facts: LabFacts) -> str:
    """Return what was seen in the queue, to be put behind a sentence, or nothing."""
    if (queue := facts.queue) is None:
        return ""
    name = one_line(queue.queue)
    if queue.problem is not None:
        return f" ({name} was not looked at: {one_line(queue.problem, 200)})"
    if not queue.messages:
        return f" (no message waits in {name})"
    waiting = f"{many(queue.messages, 'message')} wait{'s' if queue.messages == 1 else ''} in {name}"
    if queue.consumers:
        return f" ({waiting}, containers take them)"
    return f" ({waiting} and no container is free: all are at work, or none starts)"


def argument(text: str) -> str:
    """Return a foreign text as one word of a command line."""
    return shlex.quote(one_line(text, 255))


def _is_open(facts: LabFacts, run: Run) -> bool:
    return run.outcome == "started" and not facts.was_replaced(run)


def _in_outbox(facts: LabFacts, row: WaitingRow) -> Outlook:
    oldest = facts.outbox[0]
    age_s = facts.age_s(row.created_at)
    if oldest.failures:
        what = "the task" if oldest is row else f"row {oldest.id} of the outbox, which it waits for,"
        waits = facts.age_s(oldest.next_attempt_at) < 0
        soon = ago(facts.now, oldest.next_attempt_at) if waits else "within a minute"
        error = one_line(oldest.last_error or "no reason is known", 300)
        text = f"{what} could not be published: {error}; tried again {soon}"
        commands = [OUTBOX_LIST]
        if oldest.failures >= MANY_FAILURES:
            text += f", but it failed {oldest.failures} times: discard it if it can never be published"
            commands.append(f"autolabs outbox discard {oldest.id}")
        who = Actor.ADMINISTRATOR if age_s >= SWEPT_S else Actor.NOBODY
        return Outlook("outbox_failing", who, text, tuple(commands))
    if age_s < SWEPT_S:
        text = "the task is published within a minute, by a relay or the CronJob outbox"
        return Outlook("outbox_waiting", Actor.NOBODY, text, (OUTBOX_LIST,))
    text = (
        f"the task waits in the outbox for {duration(age_s)} and nobody publishes it: check that a relay or"
        " the CronJob outbox runs, or publish it by hand"
    )
    by_hand = ("kubectl get cronjob,job -n platform", "autolabs outbox relay --once")
    return Outlook("outbox_unattended", Actor.ADMINISTRATOR, text, by_hand)


def _at_work(facts: LabFacts, operation: Operation, run: Run) -> Outlook:
    age_s = facts.age_s(run.claimed_at)
    text = f"a container has been working on it for {duration(age_s)}"
    steps = run.details.get("steps")
    if isinstance(steps, dict) and steps:
        text += f"; step reached: {one_line(str(list(steps)[-1]), 60)}"
    if facts.is_cancelled(operation):
        text += "; it was cancelled since and ends at its next step"
    else:
        left = duration(CONTAINER_DEADLINE_S - age_s)
        text += f"; if it dies, another container takes over, within {left} at the latest"
    return Outlook("at_work", Actor.NOBODY, text, logs_of(facts, run))


def _lost(facts: LabFacts, run: Run) -> Outlook:
    text = (
        f"the container that took the task {ago(facts.now, run.claimed_at)} is dead, since none lives longer"
        f" than {duration(CONTAINER_DEADLINE_S)}, and nobody took the message again"
    )
    if facts.queue and facts.queue.messages == 0:
        text += "; its queue is empty, so it is in celery.dlq or gone: requeue it or publish the task again"
    else:
        text += f"; once a container takes it, it goes on by itself{queue_note(facts)}"
    return Outlook("lost", Actor.ADMINISTRATOR, text, (SCALEDJOBS, DEAD_LETTERS, *logs_of(facts, run)))


def _retried(facts: LabFacts, operation: Operation, run: Run) -> Outlook:
    delay_s = run.retry_delay_s if run.retry_delay_s is not None else COME_BACK_S
    due = (run.finished_at or run.claimed_at) + timedelta(seconds=delay_s)
    late_s, when = facts.age_s(due), ago(facts.now, due)
    if late_s < 0 and facts.is_cancelled(operation):
        text = f"it was cancelled: the container that takes it {when} does not start it again"
        return Outlook("retry_waits", Actor.NOBODY, text)
    if late_s < 0:
        text = f"it is tried again in about {duration(-late_s)}"
        return Outlook("retry_waits", Actor.NOBODY, text, logs_of(facts, run))
    text = f"the next attempt was due {when}"
    if late_s < YOUNG_S:
        text += f": the next free container takes it{queue_note(facts)}"
        return Outlook("retry_due", Actor.NOBODY, text)
    text += f" and no container took it{queue_note(facts)}"
    return Outlook("retry_overdue", Actor.ADMINISTRATOR, text, (SCALEDJOBS, DEAD_LETTERS))


def _requeued(facts: LabFacts, action: ActionRow) -> Outlook:
    actor = one_line(action.actor, 80)
    text = f"its message was requeued from celery.dlq by {actor}, no container took it yet"
    if facts.age_s(action.acted_at) < YOUNG_S:
        return Outlook("requeued", Actor.NOBODY, f"{text}: the next free one does{queue_note(facts)}")
    return Outlook("requeued", Actor.ADMINISTRATOR, f"{text}{queue_note(facts)}", (SCALEDJOBS,))
