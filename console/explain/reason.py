"""Tell why it came to this with a lab, who can mend it, and whether they know."""

from __future__ import annotations

from dataclasses import dataclass

from console.explain.facts import FAILURE_EVENTS, LabFacts, NotificationRow, Operation, Run
from console.explain.progress import SWEPT_S, Actor
from dispatcher.failure_contract import Audience, Category
from dispatcher.wording import ago, clock, duration, one_line
from jobs.failures import Failure

#: Failures that only who sends the task can mend, whoever is told of them.
BACKEND_FAILURES = {
    Failure.REQUEST_INVALID,
    Failure.FOLLOW_UP_UNSUPPORTED,
    Failure.MESSAGE_UNREADABLE,
    Failure.LAB_UNKNOWN,
}
_ACTOR_OF_AUDIENCE = {
    Audience.TEACHER.value: Actor.TEACHER,
    Audience.ADMIN.value: Actor.ADMINISTRATOR,
    Audience.NOBODY.value: Actor.NOBODY,
}
_ACTOR_OF_CAUSE = {
    failure.cause: Actor.BACKEND
    if failure in BACKEND_FAILURES
    else _ACTOR_OF_AUDIENCE[failure.audience.value]
    for failure in Failure
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """The reason, as the lab's row or a run says it."""

    sentence: str
    cause: str | None
    category: str | None


def failed_run(facts: LabFacts, operation: Operation | None) -> Run | None:
    """Return the run that tells why: the one that ended the lab, or the newest that failed."""
    if facts.lab and facts.lab.failed_at:
        # Of any task: not only a create makes a lab FAILED.
        for run in reversed(facts.runs):
            if run.error_message and run.error_message == facts.lab.error_message:
                return run
    runs = facts.runs_of(operation or Operation.CREATE)
    final = [run for run in runs if run.has_failed or run.outcome == "revoked"]
    told = final or [run for run in runs if run.error_message]
    return told[-1] if told else None


def find_why(facts: LabFacts, run: Run | None, operation: Operation | None) -> Why | None:
    """Return the sentence of the lab, or of a run that did not make it FAILED; None if all is well."""
    lab = facts.lab
    if lab and lab.status == "RUNNING" and operation is None:
        return None
    if lab and lab.error_message:
        cause = run.cause if run else facts.failures[-1].cause if facts.failures else None
        sentence, category = lab.error_message, lab.error_category
    elif run and run.error_message and not (lab and lab.status == "STOPPED"):
        sentence, cause, category = run.error_message, run.cause, run.error_category
    else:
        return None
    return Why(
        sentence=one_line(sentence),
        cause=one_line(cause) if cause else None,
        category=one_line(category) if category else None,
    )


def who_acts(facts: LabFacts, run: Run | None) -> Actor:
    """Return who can mend a failure: by its cause, else by who was told, else by its category."""
    if facts.restarted_as is not None:
        return Actor.NOBODY
    notified = facts.failures[-1] if facts.failures else None
    cause = run.cause if run and run.cause else notified.cause if notified else None
    if cause in _ACTOR_OF_CAUSE:
        return _ACTOR_OF_CAUSE[cause]
    if notified and notified.told in _ACTOR_OF_AUDIENCE:
        return _ACTOR_OF_AUDIENCE[notified.told]
    category = run.error_category if run else facts.lab.error_category if facts.lab else None
    return Actor.TEACHER if category == Category.PERMANENT_IMAGE_ERROR.value else Actor.ADMINISTRATOR


def told_lines(facts: LabFacts, who: Actor) -> list[str]:
    lines = [_notification(facts, row) for row in facts.notifications[-3:]]
    failed = facts.lab is not None and facts.lab.status == "FAILED"
    if failed and who is not Actor.NOBODY and not facts.failures:
        lines.append("nobody was notified of the failure: there is no record of it")
    return lines


def _notification(facts: LabFacts, row: NotificationRow) -> str:
    name = f"{one_line(row.told, 40)} ({one_line(row.cause, 60)})"
    if row.occasion is not None and row.event_type not in FAILURE_EVENTS:
        name += f" of {clock(facts.now, row.occasion)}"
    if row.told == Audience.NOBODY.value:
        return f"{name}: nobody has to be told"
    event = f"event published {ago(facts.now, row.published_at)}" if row.published_at else "event waits"
    hook = "webhook called, if one is set" if row.webhook_at else "webhook waits"
    text = f"{name}: {event}, {hook}"
    if row.published_at and row.webhook_at:
        return text
    if row.failures:
        error = one_line(row.last_error or "no reason is known", 200)
        text += f"; failed {row.failures} times: {error}; again {ago(facts.now, row.next_attempt_at)}"
    elif facts.age_s(row.created_at) > SWEPT_S:
        text += f" for {duration(facts.age_s(row.created_at))}: does the CronJob outbox run?"
    return text


def was_cancelled(facts: LabFacts) -> bool:
    """Tell whether the lab is over because its start was cancelled."""
    return any(
        run.outcome == "revoked" and run.cause in (None, Failure.CANCELLED.cause) and not run.error_category
        for run in facts.runs_of(Operation.CREATE)
    )
