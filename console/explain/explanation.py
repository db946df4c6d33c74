"""Explain a lab from facts: status, why, who must act, what happens next. Pure: no I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass

from console.explain.facts import LabFacts, LabRow, Operation
from console.explain.outlook import awaited, lab_outlook
from console.explain.progress import Actor
from console.explain.reason import Why, failed_run, find_why, last_stop, told_lines, was_cancelled
from console.explain.timeline import Entry, make_timeline, seen_lines
from dispatcher.lab_time import cleanup_task_id
from dispatcher.wording import ago, duration, one_line

__all__ = ["Actor", "Explanation", "awaited", "explain"]


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
    #: What was seen last of the lab in the cluster.
    seen: tuple[str, ...]
    who: Actor
    #: Whether they know.
    told: tuple[str, ...]
    next: str
    commands: tuple[str, ...]


def explain(facts: LabFacts) -> Explanation:
    """Return what the facts mean."""
    operation, found = lab_outlook(facts)
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


def _headline(facts: LabFacts) -> str:
    lab = facts.lab
    if lab is None:
        return f"Lab {facts.lab_instance_id} is not in the database, though tasks are about it."
    name = f"Lab {lab.id} (lab {lab.lab_id} of student {lab.student_id})"
    if lab.status == "FAILED":
        when = f" {ago(facts.now, lab.failed_at)}" if lab.failed_at else ""
        return f"{name} FAILED{when}."
    if lab.status == "STOPPED":
        when = f" {ago(facts.now, lab.stopped_at)}" if lab.stopped_at else ""
        return f"{name} was STOPPED{when}, {_stopped_by(facts, lab)}."
    since = lab.started_at if lab.status == "RUNNING" and lab.started_at else lab.created_at
    stop = (
        f"; its stop was asked for {ago(facts.now, lab.stop_requested_at)}" if lab.stop_requested_at else ""
    )
    return f"{name} has been {one_line(lab.status)} for {duration(facts.age_s(since))}{stop}."


def _stopped_by(facts: LabFacts, lab: LabRow) -> str:
    if was_cancelled(facts):
        return "because its start was cancelled"
    run = last_stop(facts)
    if run is None:
        return "but by no task in the ledger"
    if run.task_id == cleanup_task_id(lab.id, None):
        return "by the cleanup, because its time was over"
    return f"by the delete task {one_line(run.task_id)}"
