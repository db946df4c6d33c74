"""Tell what follows for a lab that runs, is to be stopped, or whose stop does not end, and who acts.

console.explain.explanation asks it of labs that may be in the cluster.
"""

from __future__ import annotations

from datetime import datetime

from console.explain.facts import ActionRow, LabFacts, LabRow, Operation, Run
from console.explain.progress import (
    IN_DLQ,
    SCALEDJOBS,
    YOUNG_S,
    Actor,
    Outlook,
    argument,
    discarded_by,
    progress,
    queue_note,
    show_dead_letter,
)
from console.explain.reason import who_acts
from dispatcher.failure_contract import EventType
from dispatcher.lab_time import CLEANUP_EVERY_MINUTES, STOP_PATIENCE_MINUTES
from dispatcher.wording import ago, clock, duration, one_line

#: Seconds before its end at which a lab is about to be stopped.
NEAR_END_S = 600
#: Seconds without a health check, which comes every minute, that are too many.
HEALTH_LATE_S = 300
_CLEANUP_S, _PATIENCE_S = CLEANUP_EVERY_MINUTES * 60, STOP_PATIENCE_MINUTES * 60
_CLEANUP_HISTORY = "autolabs schedule history cleanup-timeout-labs"
_RUN_CLEANUP = "autolabs schedule run-now cleanup-timeout-labs"
_CLEANUP_COMMANDS = (_CLEANUP_HISTORY, _RUN_CLEANUP)
_FORCE_COMMANDS = (_CLEANUP_HISTORY, f"{_RUN_CLEANUP} --dry-run", f"{_RUN_CLEANUP} --force")


def is_stopping(facts: LabFacts, lab: LabRow) -> bool:
    """Tell whether a lab that is not STOPPED is to be, or its stop was refused."""
    if isinstance(progress(facts, Operation.DELETE), Outlook):
        return True
    if lab.status == "FAILED":
        return False  # nothing of it is left in the cluster, and the cleanup leaves it alone
    runs = facts.runs_of(Operation.DELETE)
    was_refused = lab.status == "RUNNING" and bool(runs) and runs[-1].has_failed
    return lab.stop_requested_at is not None or was_refused


def stop_outlook(facts: LabFacts, lab: LabRow) -> Outlook:
    found = progress(facts, Operation.DELETE)
    if isinstance(found, Outlook):
        return found
    refused = found if isinstance(found, Run) and found.has_failed else None
    commands = show_dead_letter(refused)
    if lab.stop_requested_at is None:
        # What a delete that is refused leaves: the lab is as it was.
        end = f"the lab goes on until the cleanup stops it at {_end(facts, lab)}"
        who = who_acts(facts, refused) if refused else Actor.BACKEND
        return Outlook("stop_refused", who, f"its stop was refused: {end}", commands)
    age_s = facts.age_s(lab.stop_requested_at)
    text = f"the stop was asked for {ago(facts.now, lab.stop_requested_at)}"
    if isinstance(found, ActionRow):
        text += f", {discarded_by(found)}"
    elif refused:
        text += f", {IN_DLQ}"
    elif age_s >= YOUNG_S:
        text += " and no container did it"
    if age_s >= _PATIENCE_S + 2 * _CLEANUP_S:
        if cleanup := _cleanup_refused(facts, lab.stop_requested_at):
            text += f"; the cleanup, which should have asked again, {cleanup}"
            return Outlook("cleanup_refused", Actor.ADMINISTRATOR, text, (*_FORCE_COMMANDS, *commands))
        text += "; the cleanup should have asked again since: check that it runs"
        return Outlook("stop_forgotten", Actor.ADMINISTRATOR, text, (*_CLEANUP_COMMANDS, *commands))
    if age_s < YOUNG_S and not refused:
        text += f": a container does it in a moment{queue_note(facts)}"
        return Outlook("stop_asked", Actor.NOBODY, text)
    wait_s = max(_PATIENCE_S - age_s, 0) + _CLEANUP_S
    text += f"{queue_note(facts)}: the cleanup asks again within {duration(wait_s)}"
    who = who_acts(facts, refused) if refused else Actor.ADMINISTRATOR
    return Outlook("stop_unattended", who, text, (*commands, SCALEDJOBS))


def running_outlook(facts: LabFacts, lab: LabRow) -> Outlook:
    """Return what follows for a lab that is RUNNING, and that nobody asked to be stopped."""
    left_s = -facts.age_s(lab.expires_at)
    pod = (f"kubectl get pod -n labs {argument(lab.k8s_pod_name)}",) if lab.k8s_pod_name else ()
    if left_s > 0:
        text = f"the cleanup stops it at {_end(facts, lab)}, in {duration(left_s)}{_extensible(facts, lab)}"
        who, looked, commands = _looked_at(facts, lab)
        situation = "running_near_end" if left_s <= NEAR_END_S else "running"
        return Outlook(situation, who, f"{text}. {looked}", (*pod, *commands))
    text = f"its time was over at {_end(facts, lab)}"
    if refused := _cleanup_refused(facts, lab.expires_at):
        text += f", but the cleanup {refused}"
        return Outlook("cleanup_refused", Actor.ADMINISTRATOR, text, _FORCE_COMMANDS)
    if -left_s < 2 * _CLEANUP_S:
        text += f": the next cleanup stops it, within {CLEANUP_EVERY_MINUTES} minutes"
        return Outlook("running_past_end", Actor.NOBODY, text, pod)
    text += f", {duration(-left_s)} ago, and no cleanup stopped it: check that it runs"
    return Outlook("cleanup_missing", Actor.ADMINISTRATOR, text, _CLEANUP_COMMANDS)


def _end(facts: LabFacts, lab: LabRow) -> str:
    return f"{clock(facts.now, lab.expires_at)} (expires_at)"


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
    """Return what the last checks found of a lab: nobody looks into the cluster for this page."""
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
