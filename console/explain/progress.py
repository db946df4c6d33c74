"""How far the start or the stop of a lab is, and what follows from it while it is not over."""

from __future__ import annotations

import enum
import shlex
from dataclasses import dataclass
from datetime import timedelta

from console.explain.facts import ActionRow, LabFacts, Operation, Run, WaitingRow
from dispatcher.broker.topology import QUEUE_HIGH, QUEUE_NORMAL
from dispatcher.failure_contract import COME_BACK_S, CONTAINER_DEADLINE_S
from dispatcher.wording import ago, duration, one_line

#: Seconds within which a healthy platform has done the next thing; the outbox is swept once a minute.
YOUNG_S, SWEPT_S = 60, 120
#: Seconds for which a finished Job, and with it its log, is kept (keda.scaledjob).
LOG_KEPT_S = 3600
#: A task that failed so often in the outbox will hardly ever be published.
MANY_FAILURES = 10

SCALEDJOBS = "kubectl get scaledjobs,jobs -n platform"
DEAD_LETTERS = "autolabs dlq list"
OUTBOX_LIST = "autolabs outbox list"


class Actor(str, enum.Enum):
    """Who has to do something now."""

    TEACHER = "teacher"
    ADMINISTRATOR = "administrator"
    #: Whoever writes lab_instances and publishes tasks.
    BACKEND = "backend"
    NOBODY = "nobody"


class Stage(str, enum.Enum):
    """Where the task of a start or a stop is."""

    #: Nothing but the lab's row speaks of it.
    NO_TRACE = "no_trace"
    OUTBOX = "outbox"
    AT_WORK = "at_work"
    #: A container took it and cannot live any more; nobody took it since.
    LOST = "lost"
    RETRIED = "retried"
    REQUEUED = "requeued"
    DISCARDED = "discarded"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Progress:
    """A stage and the row that says so."""

    operation: Operation
    stage: Stage
    run: Run | None = None
    row: WaitingRow | None = None
    action: ActionRow | None = None


@dataclass(frozen=True, slots=True)
class Outlook:
    """What follows: a stable name of the situation, who acts, what happens next, what to run."""

    situation: str
    who: Actor
    next: str
    commands: tuple[str, ...] = ()


def progress(facts: LabFacts, operation: Operation) -> Progress:
    """Return how far an operation is; the newest thing that happened to any of its tasks decides."""
    runs = facts.runs_of(operation)
    for run in reversed(runs):
        if _is_open(facts, run) and facts.age_s(run.claimed_at) < CONTAINER_DEADLINE_S:
            return Progress(operation, Stage.AT_WORK, run=run)
    for row in facts.outbox:
        # A row whose task was begun since was published; only its deletion is missing.
        begun = any(run.task_id == row.task_id and run.claimed_at >= row.created_at for run in runs)
        if facts.operation_of(row.task_name, row.task_id) is operation and not begun:
            return Progress(operation, Stage.OUTBOX, row=row)
    last = runs[-1] if runs else None
    for action in reversed(facts.actions):
        if facts.operation_of(action.task_name, action.task_id) is not operation:
            continue
        if last is None or action.acted_at > last.claimed_at:
            stage = Stage.REQUEUED if action.action == "requeued" else Stage.DISCARDED
            return Progress(operation, stage, run=last, action=action)
    if last is None:
        return Progress(operation, Stage.NO_TRACE)
    if _is_open(facts, last):
        return Progress(operation, Stage.LOST, run=last)
    return Progress(operation, Stage.RETRIED if last.outcome == "retried" else Stage.ENDED, run=last)


def _is_open(facts: LabFacts, run: Run) -> bool:
    return run.outcome == "started" and not facts.was_replaced(run)


def queue_of(operation: Operation) -> str:
    """Return the queue in which the task of an operation waits."""
    return QUEUE_NORMAL if operation is Operation.CREATE else QUEUE_HIGH


def outlook(facts: LabFacts, found: Progress) -> Outlook | None:
    """Return what follows from a task that is on its way; None from one that is over or never was."""
    if found.stage is Stage.OUTBOX and found.row:
        return _in_outbox(facts, found.row)
    if found.stage is Stage.AT_WORK and found.run:
        return _at_work(facts, found, found.run)
    if found.stage is Stage.LOST and found.run:
        return _lost(facts, found.run)
    if found.stage is Stage.RETRIED and found.run:
        return _retried(facts, found, found.run)
    if found.stage is Stage.REQUEUED and found.action:
        return _requeued(facts, found.action)
    return None


def _in_outbox(facts: LabFacts, row: WaitingRow) -> Outlook:
    oldest = facts.outbox[0]
    age_s = facts.age_s(row.created_at)
    if oldest.failures:
        what = "the task" if oldest is row else f"row {oldest.id} of the outbox, which it waits for,"
        text = (
            f"{what} could not be published: {one_line(oldest.last_error or 'no reason is known', 300)};"
            f" tried again {_soon(facts, oldest)}"
        )
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
    commands_now = ("kubectl get cronjob,job -n platform", "autolabs outbox relay --once")
    return Outlook("outbox_unattended", Actor.ADMINISTRATOR, text, commands_now)


def _soon(facts: LabFacts, row: WaitingRow) -> str:
    return ago(facts.now, row.next_attempt_at) if facts.age_s(row.next_attempt_at) < 0 else "within a minute"


def _at_work(facts: LabFacts, found: Progress, run: Run) -> Outlook:
    steps = run.details.get("steps")
    step = (
        f"; step reached: {one_line(str(list(steps)[-1]), 60)}" if isinstance(steps, dict) and steps else ""
    )
    age_s = facts.age_s(run.claimed_at)
    text = f"a container has been working on it for {duration(age_s)}{step}"
    if facts.is_cancelled(found.operation):
        text += "; it was cancelled since and ends at its next step"
        return Outlook("at_work", Actor.NOBODY, text, logs_of(facts, run))
    left_s = CONTAINER_DEADLINE_S - age_s
    text += f"; if it dies, another container takes over, within {duration(left_s)} at the latest"
    return Outlook("at_work", Actor.NOBODY, text, logs_of(facts, run))


def _lost(facts: LabFacts, run: Run) -> Outlook:
    text = (
        f"the container that took the task {ago(facts.now, run.claimed_at)} is dead, since none lives longer"
        f" than {duration(CONTAINER_DEADLINE_S)}, and nobody took the message again"
    )
    if facts.queue and facts.queue.messages == 0:
        text += "; its queue is empty, so it is in celery.dlq or gone: requeue it or publish the task again"
    else:
        text += f"; once a container takes it, it goes on by itself{sight(facts)}"
    return Outlook("lost", Actor.ADMINISTRATOR, text, (SCALEDJOBS, DEAD_LETTERS, *logs_of(facts, run)))


def _retried(facts: LabFacts, found: Progress, run: Run) -> Outlook:
    ended = run.finished_at or run.claimed_at
    delay_s = run.retry_delay_s if run.retry_delay_s is not None else COME_BACK_S
    due = ended + timedelta(seconds=delay_s)
    late_s = facts.age_s(due)
    if late_s < 0:
        if facts.is_cancelled(found.operation):
            text = (
                f"it was cancelled: the container that takes it {ago(facts.now, due)} does not start it again"
            )
            return Outlook("retry_waits", Actor.NOBODY, text)
        text = f"it is tried again in about {duration(-late_s)}"
        return Outlook("retry_waits", Actor.NOBODY, text, logs_of(facts, run))
    text = f"the next attempt was due {ago(facts.now, due)}"
    if late_s < YOUNG_S:
        return Outlook("retry_due", Actor.NOBODY, f"{text}: the next free container takes it{sight(facts)}")
    return Outlook(
        "retry_overdue",
        Actor.ADMINISTRATOR,
        f"{text} and no container took it{sight(facts)}",
        (SCALEDJOBS, DEAD_LETTERS),
    )


def _requeued(facts: LabFacts, action: ActionRow) -> Outlook:
    text = (
        f"its message was requeued from celery.dlq by {one_line(action.actor, 80)}, no container took it yet"
    )
    if facts.age_s(action.acted_at) < YOUNG_S:
        return Outlook("requeued", Actor.NOBODY, f"{text}: the next free one does{sight(facts)}")
    return Outlook("requeued", Actor.ADMINISTRATOR, f"{text}{sight(facts)}", (SCALEDJOBS,))


def logs_of(facts: LabFacts, run: Run | None) -> tuple[str, ...]:
    """Return the command that shows the log of a run, or nothing when its Job is gone."""
    if run is None or not run.job_name:
        return ()
    if facts.age_s(run.finished_at or run.claimed_at) > LOG_KEPT_S + CONTAINER_DEADLINE_S:
        return ()
    return (f"kubectl logs -n platform job/{argument(run.job_name)}",)


def sight(facts: LabFacts) -> str:
    """Return what was seen in the queue, to be put behind a sentence, or nothing."""
    queue = facts.queue
    if queue is None:
        return ""
    if queue.problem is not None:
        return f" ({one_line(queue.queue)} was not looked at: {one_line(queue.problem, 200)})"
    messages = "1 message waits" if queue.messages == 1 else f"{queue.messages} messages wait"
    if not queue.messages:
        return f" (no message waits in {one_line(queue.queue)})"
    if queue.consumers:
        return f" ({messages} in {one_line(queue.queue)}, containers take them)"
    return (
        f" ({messages} in {one_line(queue.queue)} and no container is free: all are at work, or none starts)"
    )


def argument(text: str) -> str:
    """Return a foreign text as one word of a command line."""
    return shlex.quote(one_line(text, 255))
