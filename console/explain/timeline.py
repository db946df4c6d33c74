"""Put into lines what happened to a lab, in order, and what was seen last of one that failed.

Containers wrote `seen` and `evidence` of a run's details from what Kubernetes, a registry or the lab itself
said: any part may be missing, or be something else than it should be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from console.explain.facts import LabFacts, Operation, Run
from dispatcher.failure_contract import CONTAINER_DEADLINE_S
from dispatcher.wording import duration, last_lines, one_line

#: Entries that are shown at most; the oldest and the newest say most.
MAX_ENTRIES = 12
_FIRST = 2
#: Shortest wait in a queue that is mentioned, in seconds.
_LONG_WAIT_S = 10
_MAX_CONDITIONS, _MAX_CONTAINERS, _MAX_EVENTS, _MAX_LOG_LINES, _MAX_EVIDENCE_LINES = 3, 3, 4, 6, 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened; `at` is None for a number of entries left out."""

    at: datetime | None
    text: str


def make_timeline(facts: LabFacts) -> list[Entry]:
    """Return what happened, the oldest first; the middle of a long story is left out and counted."""
    entries = [Entry(at, text) for at, text in sorted(_moments(facts), key=lambda moment: moment[0])]
    hidden = len(entries) - MAX_ENTRIES
    if hidden > 0:
        entries[_FIRST : _FIRST + hidden] = [Entry(None, f"{hidden} more (--json has them)")]
    if facts.earlier_runs:
        entries.insert(0, Entry(None, f"{facts.earlier_runs} earlier runs (task_ledger has them)"))
    return entries


def _moments(facts: LabFacts) -> Iterator[tuple[datetime, str]]:
    lab = facts.lab
    if lab:
        task = f", its task is {one_line(lab.celery_task_id)}" if lab.celery_task_id else ""
        place = f" in place of lab {lab.restart_of}, which was lost" if lab.restart_of else ""
        yield (lab.created_at, f"asked for{place}{task}")
        if lab.started_at:
            url = f" at {one_line(lab.connection_url)}" if lab.connection_url else ""
            yield (lab.started_at, f"RUNNING{url}")
        if lab.failed_at:
            yield (lab.failed_at, "FAILED")
        asked = lab.stop_requested_at
        # The container of a stop sets the time where nobody else did.
        if asked and not any(
            run.claimed_at <= asked <= (run.finished_at or facts.now)
            for run in facts.runs_of(Operation.DELETE)
        ):
            yield (asked, "its stop was asked for")
        if lab.stopped_at:
            yield (lab.stopped_at, "STOPPED")
    for row in facts.outbox:
        text = f"{_name(facts, row.task_name, row.task_id)} was put into the outbox as row {row.id}"
        if row.failures:
            tries = "one try" if row.failures == 1 else f"{row.failures} tries"
            text += f"; not published in {tries}: {one_line(row.last_error or 'no reason', 200)}"
        yield (row.created_at, text)
    for run in facts.runs:
        yield (run.claimed_at, _run(facts, run))
    for cancelled in facts.cancellations:
        yield (cancelled.requested_at, f"task {one_line(cancelled.task_id)} was cancelled")
    for action in facts.actions:
        task = one_line(action.task_name or "message without a name").removeprefix("celery_workers.")
        done = f"was {one_line(action.action)} by {one_line(action.actor)}"
        yield (action.acted_at, f"{task} in celery.dlq {done}")


def _name(facts: LabFacts, task_name: str, task_id: str) -> str:
    operation = facts.operation_of(task_name, task_id)
    return operation.value if operation else one_line(task_name).removeprefix("celery_workers.") or "a task"


def _repair(run: Run) -> str | None:
    """Return what a sync, or `autolabs verify --repair`, found and did; None of any other run."""
    found, done = run.details.get("found"), run.details.get("done")
    if not isinstance(found, str) or not isinstance(done, str):
        return None
    name = one_line(run.task_name).rpartition(".")[2].removesuffix("_lab_status")
    end = "" if run.outcome == "succeeded" else f" ({one_line(run.outcome)})"
    return f"{name} found: {one_line(found, 200)}; {one_line(done, 200)}{end}"


def _run(facts: LabFacts, run: Run) -> str:
    if repair := _repair(run):
        return repair
    name = _name(facts, run.task_name, run.task_id)
    again = ", delivered again" if run.redelivered else ""
    return f"{name}, attempt {run.attempt}{again}{_by(run)}: {_ending(facts, run)}"


def _by(run: Run) -> str:
    waited = ""
    # The publish of another attempt is that of the first delivery, or the delay of the retry.
    if run.published_at and run.attempt <= 1 and not run.redelivered:
        waited_s = (run.claimed_at - run.published_at).total_seconds()
        waited = f", after {duration(waited_s)} in the queue" if waited_s >= _LONG_WAIT_S else ""
    job, pod = run.job_name, run.pod_name
    if job and pod and pod.startswith(f"{job}-"):
        return f"{waited} (Job {one_line(job)}, pod ..{one_line(pod.removeprefix(job))})"
    names = [f"{kind} {one_line(name)}" for kind, name in (("Job", job), ("pod", pod)) if name]
    return f"{waited} ({', '.join(names)})" if names else waited


def _ending(facts: LabFacts, run: Run) -> str:
    why = f": {one_line(run.error_message, 200)}" if run.error_message else ""
    took = f" after {duration((run.finished_at - run.claimed_at).total_seconds())}" if run.finished_at else ""
    if run.outcome == "started":
        if facts.was_replaced(run):
            return "its container was killed, the message came again"
        alive = facts.age_s(run.claimed_at) < CONTAINER_DEADLINE_S
        return "running" if alive else "its container was killed before it wrote an end"
    if run.outcome == "retried":
        delay_s = run.retry_delay_s
        when = f"again after {duration(delay_s)}" if delay_s is not None else "again a little later"
        return f"failed{took}, {when}{why}"
    words = {
        "succeeded": f"done{took}",
        "noop": "nothing to do",
        "failed": f"failed for good{took}",
        "dead_lettered": f"given up{took}, its message is in celery.dlq",
        "revoked": "not performed",
    }
    return words.get(run.outcome, one_line(run.outcome)) + why


def seen_lines(run: Run) -> list[str]:
    """Return what a run saw last of its lab; nothing if it left nothing."""
    seen = _mapping(run.details.get("seen"))
    lines = [*_pod(seen), *_containers(seen), *_events(seen), *_log(seen)]
    if note := _text(seen, "note"):
        lines.append(note)
    evidence = run.details.get("evidence")
    if isinstance(evidence, str):
        lines += [f"evidence: {line}" for line in last_lines(evidence, _MAX_EVIDENCE_LINES)]
    return lines


def _pod(seen: Mapping[str, Any]) -> Iterator[str]:
    pod = _mapping(seen.get("pod"))
    if pod:
        node = f" on {_text(pod, 'node')}" if _text(pod, "node") else ""
        yield _line(f"pod {_text(pod, 'name')}{node}", pod, "phase", "reason")
    unmet = [found for found in _mappings(seen.get("conditions")) if found.get("status") != "True"]
    for condition in unmet[:_MAX_CONDITIONS]:
        yield _line(f"not {_text(condition, 'type')}", condition, "reason")


def _containers(seen: Mapping[str, Any]) -> Iterator[str]:
    for container in _mappings(seen.get("containers"))[:_MAX_CONTAINERS]:
        code, restarts = container.get("exit_code"), container.get("restarts")
        last = _text(_mapping(container.get("last")), "reason")
        more = [
            *([f"ended before: {last}"] if last else []),
            *([f"exit code {code}"] if isinstance(code, int) else []),
            *([f"restarts {restarts}"] if isinstance(restarts, int) and restarts else []),
        ]
        yield _line(f"container {_text(container, 'name')}", container, "state", "reason", more=more)


def _events(seen: Mapping[str, Any]) -> Iterator[str]:
    for event in _mappings(seen.get("events"))[-_MAX_EVENTS:]:
        count = event.get("count")
        more = [f"{count} times"] if isinstance(count, int) and count > 1 else []
        moment = _text(event, "at")[11:19]
        yield _line(f"event {moment}".rstrip(), event, "type", "reason", more=more)


def _log(seen: Mapping[str, Any]) -> Iterator[str]:
    log = _mapping(seen.get("log"))
    lines = log.get("lines")
    if not isinstance(lines, list) or not lines:
        return
    last = " before its restart" if log.get("previous") is True else ""
    yield f"last lines of container {_text(log, 'container')}{last}:"
    for line in lines[-_MAX_LOG_LINES:]:
        yield f"  | {one_line(str(line), 200)}"


def _line(subject: str, found: Mapping[str, Any], *keys: str, more: list[str] | None = None) -> str:
    parts = [text for key in keys if (text := _text(found, key))] + (more or [])
    # Long, because the kubelet says what is wrong at the end.
    message = _text(found, "message", most=400)
    return ": ".join(part for part in (subject, ", ".join(parts), message) if part)


def _text(found: Mapping[str, Any], key: str, *, most: int = 200) -> str:
    value = found.get(key)
    return "" if value is None else one_line(str(value), most)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [found for found in value if isinstance(found, dict)] if isinstance(value, list) else []
