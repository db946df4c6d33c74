"""What follows from the state of a lab: whose turn it is, what happens next, what to run."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from console.explain.facts import LabFacts, LabRow, Operation, Run
from console.explain.progress import (
    DEAD_LETTERS,
    SCALEDJOBS,
    YOUNG_S,
    Actor,
    Outlook,
    Stage,
    argument,
    logs_of,
    outlook,
    progress,
    queue_of,
    sight,
)
from console.explain.reason import failed_run, was_cancelled, who_acts
from dispatcher.failure_contract import EventType
from dispatcher.lab_time import CLEANUP_EVERY_MINUTES, STOP_PATIENCE_MINUTES
from dispatcher.wording import ago, clock, duration, one_line
from jobs.failures import Failure

#: Seconds before its end at which a lab is about to be stopped.
NEAR_END_S = 600
#: Seconds without a health check, which comes every minute, that are too many.
HEALTH_LATE_S = 300
_CLEANUP_S, _PATIENCE_S = CLEANUP_EVERY_MINUTES * 60, STOP_PATIENCE_MINUTES * 60
_CLEANUP_HISTORY = "autolabs schedule history cleanup-timeout-labs"
_RUN_CLEANUP = "autolabs schedule run-now cleanup-timeout-labs"
_CLEANUP_COMMANDS = (_CLEANUP_HISTORY, _RUN_CLEANUP)
_FORCE_COMMANDS = (_CLEANUP_HISTORY, f"{_RUN_CLEANUP} --dry-run", f"{_RUN_CLEANUP} --force")


def awaited(facts: LabFacts) -> Operation | None:
    """Return the operation whose queue is worth a look, None if no task is waited for."""
    lab = facts.lab
    if lab is None or lab.status not in ("PENDING", "RUNNING"):
        return None
    if is_stopping(facts, lab):
        return Operation.DELETE
    return Operation.CREATE if lab.status == "PENDING" else None


def lab_outlook(facts: LabFacts) -> tuple[Operation | None, Outlook]:
    """Return what follows, and the operation that is under way or failed."""
    lab = facts.lab
    if lab is None:
        return None, _no_row(facts)
    if lab.status == "STOPPED":
        return None, _stopped(facts, lab)
    if is_stopping(facts, lab):
        return Operation.DELETE, _stopping(facts, lab)
    if lab.status == "PENDING":
        return Operation.CREATE, _starting(facts, lab)
    if lab.status == "RUNNING":
        return None, _running(facts, lab)
    return Operation.CREATE, _failed(facts, lab)


def is_stopping(facts: LabFacts, lab: LabRow) -> bool:
    """Tell whether a lab that is not STOPPED is to be, or its stop was refused."""
    found = progress(facts, Operation.DELETE)
    if outlook(facts, found):
        return True
    if lab.status == "FAILED":
        return False  # nothing of it is left in the cluster, and the cleanup leaves it alone
    if lab.stop_requested_at is not None:
        return True
    refused = found.run is not None and found.run.outcome in ("failed", "dead_lettered")
    return lab.status == "RUNNING" and refused


def _starting(facts: LabFacts, lab: LabRow) -> Outlook:
    found = progress(facts, Operation.CREATE)
    if follows := outlook(facts, found):
        return follows
    new_lab = "nothing more happens by itself: ask for a new lab"
    if found.stage is Stage.DISCARDED and found.action:
        who = one_line(found.action.actor, 80)
        return Outlook("discarded", Actor.BACKEND, f"its message was discarded by {who}; {new_lab}")
    if found.stage is Stage.ENDED and found.run:
        return _ended_without_effect(facts, found.run)
    return _never_seen(facts, lab)


def _ended_without_effect(facts: LabFacts, run: Run) -> Outlook:
    if run.outcome in ("failed", "dead_lettered"):
        text = "its message is in celery.dlq, which the lab's row does not say: look at it, then requeue it"
        return Outlook(
            "dead_lettered", who_acts(facts, run), text, (*_dead_letter(run), *logs_of(facts, run))
        )
    text = f"the ledger says that its task is over ({one_line(run.outcome)}), but the lab's row does not"
    return Outlook("contradiction", Actor.ADMINISTRATOR, text, ("autolabs verify", *logs_of(facts, run)))


def _never_seen(facts: LabFacts, lab: LabRow) -> Outlook:
    age_s = facts.age_s(lab.created_at)
    if facts.is_cancelled(Operation.CREATE):
        text = "its task was cancelled: the container that takes the message makes the lab STOPPED"
        return Outlook("cancelled", Actor.NOBODY, text + sight(facts))
    if age_s < YOUNG_S:
        return Outlook("young", Actor.NOBODY, f"its task is on its way to a container{sight(facts)}")
    queue = facts.queue
    if queue and queue.messages:
        text = f"its task seems to wait in the queue{sight(facts)}; it begins when a container takes it"
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
            f" died between commit and publish{sight(facts)}. If it is nowhere, nothing more happens by"
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
    return "1 message is" if number == 1 else f"{number} messages are"


def _stopping(facts: LabFacts, lab: LabRow) -> Outlook:
    found = progress(facts, Operation.DELETE)
    if follows := outlook(facts, found):
        return follows
    requested = lab.stop_requested_at
    ended = found.run if found.stage is Stage.ENDED else None
    refused = ended if ended and ended.outcome in ("failed", "dead_lettered") else None
    if requested is None:
        # What a delete that is refused leaves: the lab is as it was.
        end = f"the lab goes on until the cleanup stops it at {clock(facts.now, lab.expires_at)} (expires_at)"
        who = who_acts(facts, refused) if refused else Actor.BACKEND
        return Outlook("stop_refused", who, f"its stop was refused: {end}", _dead_letter(refused))
    age_s = facts.age_s(requested)
    commands = _dead_letter(refused)
    text = f"the stop was asked for {ago(facts.now, requested)}"
    if found.stage is Stage.DISCARDED and found.action:
        text += f", its message was discarded by {one_line(found.action.actor, 80)}"
    elif refused:
        text += ", its message is in celery.dlq"
    elif age_s >= YOUNG_S:
        text += " and no container did it"
    if age_s >= _PATIENCE_S + 2 * _CLEANUP_S:
        if refused_since := _cleanup_refused(facts, requested):
            text += f"; the cleanup, which should have asked again, {refused_since}"
            return Outlook("cleanup_refused", Actor.ADMINISTRATOR, text, (*_FORCE_COMMANDS, *commands))
        text += "; the cleanup should have asked again since: check that it runs"
        return Outlook("stop_forgotten", Actor.ADMINISTRATOR, text, (*_CLEANUP_COMMANDS, *commands))
    if age_s < YOUNG_S and not refused:
        text = f"{text}: a container does it in a moment{sight(facts)}"
        return Outlook("stop_asked", Actor.NOBODY, text)
    wait_s = max(_PATIENCE_S - age_s, 0) + _CLEANUP_S
    text += f"{sight(facts)}: the cleanup asks again within {duration(wait_s)}"
    who = who_acts(facts, refused) if refused else Actor.ADMINISTRATOR
    return Outlook("stop_unattended", who, text, (*commands, SCALEDJOBS))


def _running(facts: LabFacts, lab: LabRow) -> Outlook:
    left_s = -facts.age_s(lab.expires_at)
    pod = (f"kubectl get pod -n labs {argument(lab.k8s_pod_name)}",) if lab.k8s_pod_name else ()
    end = f"{clock(facts.now, lab.expires_at)} (expires_at)"
    if left_s > 0:
        text = f"the cleanup stops it at {end}, in {duration(left_s)}{_extensible(facts, lab)}"
        who, looked, commands = _looked_at(facts, lab)
        situation = "running_near_end" if left_s <= NEAR_END_S else "running"
        return Outlook(situation, who, f"{text}. {looked}", (*pod, *commands))
    if refused := _cleanup_refused(facts, lab.expires_at):
        text = f"its time was over at {end}, but the cleanup {refused}"
        return Outlook("cleanup_refused", Actor.ADMINISTRATOR, text, _FORCE_COMMANDS)
    if -left_s < 2 * _CLEANUP_S:
        text = (
            f"its time was over at {end}: the next cleanup stops it, within {CLEANUP_EVERY_MINUTES} minutes"
        )
        return Outlook("running_past_end", Actor.NOBODY, text, pod)
    text = (
        f"its time was over at {end}, {duration(-left_s)} ago, and no cleanup stopped it: check that it runs"
    )
    return Outlook("cleanup_missing", Actor.ADMINISTRATOR, text, _CLEANUP_COMMANDS)


def _cleanup_refused(facts: LabFacts, since: datetime) -> str | None:
    """Return what the last cleanup did if it refused to end any lab, to be put behind its name."""
    refused = facts.cleanup_refused
    if refused is None or refused.at < since:
        return None
    return (
        f"refused to end any lab {ago(facts.now, refused.at)} ({one_line(refused.cause)}): its history says"
        " why; once that is mended, or if it is right, --force"
    )


def _extensible(facts: LabFacts, lab: LabRow) -> str:
    """Return until when an extension may move the end, to be put behind it."""
    latest = lab.max_expires_at
    if latest is None:
        return ", unless the backend extends it"
    if latest <= lab.expires_at:
        return "; it was extended as far as it may be"
    return f", unless it is extended, which may be until {clock(facts.now, latest)}"


def _looked_at(facts: LabFacts, lab: LabRow) -> tuple[Actor, str, tuple[str, ...]]:
    """Return what is known of whether it is there: nobody looks into the cluster for this page."""
    verify = f"autolabs verify {lab.id}"
    looked = facts.health_checked_at
    if looked is None or facts.age_s(looked) >= HEALTH_LATE_S:
        when = f"for {duration(facts.age_s(looked))}" if looked else "that the ledger knows"
        text = f"No health check looked at it {when}: check that it runs. {verify} says if its Pod exists"
        return Actor.ADMINISTRATOR, text, (verify, "autolabs schedule list")
    lacks = next((row for row in facts.notifications if row.event_type == EventType.UNREACHABLE), None)
    if lacks is not None:
        text = f"{ago(facts.now, lacks.created_at)} a sync found that nobody can reach it, as its Service was"
        text += f" gone; {verify} tells whether it still is"
        return Actor.ADMINISTRATOR, text[:1].upper() + text[1:], (verify,)
    synced = f", the last sync {ago(facts.now, facts.synced_at)}" if facts.synced_at else ""
    text = f"The last health check was {ago(facts.now, looked)}{synced}; {verify} looks at it now"
    return Actor.NOBODY, text, (verify,)


def _failed(facts: LabFacts, lab: LabRow) -> Outlook:
    if facts.restarted_as is not None:
        text = f"lab {facts.restarted_as} was started in its place"
        return Outlook("restarted", Actor.NOBODY, text, (f"autolabs explain {facts.restarted_as}",))
    run = failed_run(facts, Operation.CREATE)
    who = who_acts(facts, run)
    first = {
        Actor.TEACHER: "once the teacher has corrected it, start a new lab",
        Actor.ADMINISTRATOR: "once the administrator has looked at it, start a new lab",
        Actor.BACKEND: "once the backend sends a valid request, start a new lab",
        Actor.NOBODY: "start a new lab",
    }[who]
    kept = _dead_letter(run) if run and run.outcome == "dead_lettered" else ()
    situation = "expired" if run and run.cause == Failure.EXPIRED.cause else "failed"
    text = f"nothing more happens by itself, a lab that FAILED is not tried again: {first}"
    look: tuple[str, ...] = ()
    left_s = run.objects_kept_s - facts.age_s(run.finished_at or run.claimed_at) if run else 0
    if left_s > 0:
        text += f"; its Pod can be looked at for another {duration(left_s)}"
        look = (f"kubectl describe pod -n labs -l lab_instance_id={lab.id}",)
    return Outlook(situation, who, text, (*look, *logs_of(facts, run), *kept))


def _stopped(facts: LabFacts, lab: LabRow) -> Outlook:
    situation = "failed_then_stopped" if lab.failed_at else "stopped"
    if was_cancelled(facts):
        situation = "start_cancelled"
    text = "nothing, a stopped lab is not started again: ask the backend for a new one"
    return Outlook(situation, Actor.NOBODY, text)


def _no_row(facts: LabFacts) -> Outlook:
    text = "its row was never committed, or was deleted; no task can start it: ask for a new lab"
    for operation in Operation:
        if follows := outlook(facts, progress(facts, operation)):
            text = f"{text}. Of the {operation.value}: {follows.next}"
            return replace(follows, situation="no_row", who=Actor.BACKEND, next=text)
    return Outlook("no_row", Actor.BACKEND, text, (DEAD_LETTERS,))


def _dead_letter(run: Run | None) -> tuple[str, ...]:
    return (f"autolabs dlq show {argument(run.task_id)}",) if run and run.outcome == "dead_lettered" else ()
