"""Explain a lab from facts alone: its status, why, who must act, what happens next.

The command calls `explain`, and `awaited` before it looks at a queue. No I/O, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from console.explain.facts import LabFacts, LabRow, Operation
from console.explain.progress import DEAD_LETTERS, Actor, Outlook, logs_of, progress, show_dead_letter
from console.explain.reason import Why, failed_run, find_why, told_lines, was_cancelled, who_acts
from console.explain.start import start_outlook
from console.explain.stop import is_stopping, running_outlook, stop_outlook
from console.explain.timeline import Entry, make_timeline, seen_lines
from dispatcher.lab_time import cleanup_task_id
from dispatcher.wording import ago, duration, one_line
from jobs.failures import Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What an operator wants to know; texts are fit for a terminal."""

    #: A stable name for programs.
    situation: str
    #: The operation that is under way or failed; None for a lab that just runs or is over.
    operation: Operation | None
    headline: str
    timeline: tuple[Entry, ...]
    why: Why | None
    #: The last that was seen of the lab in the cluster.
    seen: tuple[str, ...]
    who: Actor
    #: Whether they know.
    told: tuple[str, ...]
    next: str
    commands: tuple[str, ...]


def explain(facts: LabFacts) -> Explanation:
    operation, found = _outlook(facts)
    run = failed_run(facts, operation)
    why = find_why(facts, run, operation)
    return Explanation(
        situation=found.situation,
        operation=operation,
        headline=_headline(facts),
        timeline=tuple(make_timeline(facts)),
        why=why,
        seen=tuple(seen_lines(run)) if why and run else (),
        who=found.who,
        told=tuple(told_lines(facts, found.who)),
        next=found.next,
        commands=found.commands,
    )


def awaited(facts: LabFacts) -> Operation | None:
    """Return the operation whose queue is worth a look, None if no task is waited for."""
    lab = facts.lab
    if lab is None or lab.status not in ("PENDING", "RUNNING"):
        return None
    if is_stopping(facts, lab):
        return Operation.DELETE
    return Operation.CREATE if lab.status == "PENDING" else None


def _outlook(facts: LabFacts) -> tuple[Operation | None, Outlook]:
    """Return the operation that is under way or failed, and what follows."""
    lab = facts.lab
    if lab is None:
        return None, _no_row(facts)
    if lab.status == "STOPPED":
        situation = "failed_then_stopped" if lab.failed_at else "stopped"
        situation = "start_cancelled" if was_cancelled(facts) else situation
        text = "nothing, a stopped lab is not started again: ask the backend for a new one"
        return None, Outlook(situation, Actor.NOBODY, text)
    if is_stopping(facts, lab):
        return Operation.DELETE, stop_outlook(facts, lab)
    if lab.status == "PENDING":
        return Operation.CREATE, start_outlook(facts, lab)
    if lab.status == "RUNNING":
        return None, running_outlook(facts, lab)
    return Operation.CREATE, _failed(facts, lab)


def _no_row(facts: LabFacts) -> Outlook:
    text = "its row was never committed, or was deleted; no task can start it: ask for a new lab"
    for operation in Operation:
        found = progress(facts, operation)
        if isinstance(found, Outlook):
            text = f"{text}. Of the {operation.value}: {found.next}"
            return replace(found, situation="no_row", who=Actor.BACKEND, next=text)
    return Outlook("no_row", Actor.BACKEND, text, (DEAD_LETTERS,))


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
    text = f"nothing more happens by itself, a lab that FAILED is not tried again: {first}"
    look: tuple[str, ...] = ()
    left_s = run.objects_kept_s - facts.age_s(run.finished_at or run.claimed_at) if run else 0
    if left_s > 0:
        text += f"; its Pod can be looked at for another {duration(left_s)}"
        look = (f"kubectl describe pod -n labs -l lab_instance_id={lab.id}",)
    situation = "expired" if run and run.cause == Failure.EXPIRED.cause else "failed"
    return Outlook(situation, who, text, (*look, *logs_of(facts, run), *show_dead_letter(run)))


def _headline(facts: LabFacts) -> str:
    def when(moment: datetime | None) -> str:
        return f" {ago(facts.now, moment)}" if moment else ""

    lab = facts.lab
    if lab is None:
        return f"Lab {facts.lab_instance_id} is not in the database, though tasks are about it."
    name = f"Lab {lab.id} (lab {lab.lab_id} of student {lab.student_id})"
    if lab.status == "FAILED":
        return f"{name} FAILED{when(lab.failed_at)}."
    if lab.status == "STOPPED":
        return f"{name} was STOPPED{when(lab.stopped_at)}, {_stopped_by(facts, lab)}."
    since = lab.started_at if lab.status == "RUNNING" and lab.started_at else lab.created_at
    stop = f"; its stop was asked for{when(lab.stop_requested_at)}" if lab.stop_requested_at else ""
    return f"{name} has been {one_line(lab.status)} for {duration(facts.age_s(since))}{stop}."


def _stopped_by(facts: LabFacts, lab: LabRow) -> str:
    if was_cancelled(facts):
        return "because its start was cancelled"
    runs = facts.runs_of(Operation.DELETE)
    task_id = next((run.task_id for run in runs if run.outcome == "succeeded"), None)
    if task_id is None:
        return "but by no task in the ledger"
    if task_id == cleanup_task_id(lab.id, None):
        return "by the cleanup, because its time was over"
    return f"by the delete task {one_line(task_id)}"
