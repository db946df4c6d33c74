"""Tell what follows for a lab that waits for its start, and who acts.

console.explain.explanation asks it of labs that are PENDING.
"""

from __future__ import annotations

from console.explain.facts import ActionRow, LabFacts, LabRow, Operation
from console.explain.progress import (
    DEAD_LETTERS,
    IN_DLQ,
    SCALEDJOBS,
    YOUNG_S,
    Actor,
    Outlook,
    discarded_by,
    logs_of,
    progress,
    queue_note,
    queue_of,
    show_dead_letter,
)
from console.explain.reason import who_acts
from dispatcher.wording import many, one_line


def start_outlook(facts: LabFacts, lab: LabRow) -> Outlook:
    """Return what follows for a lab that is PENDING and not to be stopped."""
    found = progress(facts, Operation.CREATE)
    if isinstance(found, Outlook):
        return found
    if isinstance(found, ActionRow):
        text = f"{discarded_by(found)}; nothing more happens by itself: ask for a new lab"
        return Outlook("discarded", Actor.BACKEND, text)
    if found is None:
        return _never_seen(facts, lab)
    logs = logs_of(facts, found)
    if found.has_failed:
        text = f"{IN_DLQ}, which the lab's row does not say: look at it, then requeue it"
        return Outlook("dead_lettered", who_acts(facts, found), text, (*show_dead_letter(found), *logs))
    text = f"the ledger says that its task is over ({one_line(found.outcome)}), but the lab's row does not"
    return Outlook("contradiction", Actor.ADMINISTRATOR, text, ("autolabs verify", *logs))


def _never_seen(facts: LabFacts, lab: LabRow) -> Outlook:
    if facts.is_cancelled(Operation.CREATE):
        text = "its task was cancelled: the container that takes the message makes the lab STOPPED"
        return Outlook("cancelled", Actor.NOBODY, text + queue_note(facts))
    if facts.age_s(lab.created_at) < YOUNG_S:
        return Outlook("young", Actor.NOBODY, f"its task is on its way to a container{queue_note(facts)}")
    queue = facts.queue
    if queue and queue.messages:
        text = f"its task seems to wait in the queue{queue_note(facts)}; it begins when a container takes it"
        who = Actor.NOBODY if queue.consumers else Actor.ADMINISTRATOR
        return Outlook("in_queue", who, text, (SCALEDJOBS,))
    who = Actor.ADMINISTRATOR if queue and queue.dead else Actor.BACKEND
    commands = (SCALEDJOBS, f"{DEAD_LETTERS} --lab {lab.id}")
    return Outlook("no_trace", who, _no_trace(facts), commands)


def _no_trace(facts: LabFacts) -> str:
    again = "publish the task again (under the same id, if it has one), or ask for a new lab"
    queue, name = facts.queue, queue_of(Operation.CREATE)
    if queue is None or queue.problem is not None:
        return (
            f"no trace of its task: it waits in {name}, on the delay ladder or in celery.dlq, or the backend"
            f" died between commit and publish{queue_note(facts)}. If it is nowhere, nothing more happens by"
            f" itself: {again}"
        )
    if queue.delayed == queue.dead == 0:
        return (
            f"its task is not in {name}, on the delay ladder or in celery.dlq: a container holds it that"
            " could not write to the ledger yet, or it was not published (did the backend die between commit"
            f" and publish?). If it stays like this, nothing more happens by itself: {again}"
        )
    places = (("on the delay ladder, for later", queue.delayed), ("in celery.dlq", queue.dead))
    seen = ", ".join(f"{_messages(number)} {place}" for place, number in places if number != 0)
    return (
        f"no container began its task, and it is not in {name}; elsewhere {seen}, which may be of other labs."
        f" If it is not among them, it was not published: {again}"
    )


def _messages(number: int | None) -> str:
    if number is None:
        return "an unknown number of messages is"
    return f"{many(number, 'message')} {'is' if number == 1 else 'are'}"
