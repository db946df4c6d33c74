"""List the runs of a schedule: rows of the ledger, and Jobs that are still there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from console.schedules.cron_jobs import CronJobs, job_duration_s, job_outcome, task_of
from dispatcher import tasks
from dispatcher.errors import DispatcherError
from dispatcher.settings import database_url, read_settings
from dispatcher.wording import clock, duration, one_line, printable, table
from jobs.cluster.client import Manifest, api_time
from jobs.database.connection import Database
from jobs.database.ledger import may_go_on

#: Task of a schedule -> its name in the ledger; the outbox is no task.
LEDGER_NAMES = {
    "cleanup": tasks.CLEANUP_TIMEOUT_LABS,
    "health": tasks.HEALTH_CHECK_PODS,
    "sync": tasks.SYNC_LAB_STATUS,
}
#: By the index task_ledger_task_name_id_idx. Two schedules may have one task: the name that the controller or
#: `run-now` gave a Job, or its owner, tells whose run it was. That of a message is shown with each.
_RUNS = f"""
SELECT claimed_at, extract(epoch FROM coalesce(finished_at, now()) - claimed_at)::float8, outcome,
       {may_go_on("run")}, queue, coalesce(job_name, ''), details -> 'result', coalesce(error_message, '')
  FROM task_ledger AS run WHERE task_name = %s AND lab_instance_id IS NULL
   AND (queue <> '' OR job_name IS NULL OR job_name ~ %s OR job_name = ANY(%s))
 ORDER BY id DESC LIMIT %s
"""  # noqa: S608  # constants
#: Outcome of a run whose container was killed.
LOST = "lost"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a schedule."""

    began: datetime
    duration_s: float | None
    #: As dispatcher.models.Outcome, or running, or lost.
    outcome: str
    #: The origin: schedule, hand or message.
    by: str
    job: str
    result: dict[str, Any] | None
    #: The reason why it failed, or empty.
    error: str


def runs_of(cron_jobs: CronJobs, name: str, *, limit: int, environ: Mapping[str, str]) -> list[Run]:
    """Return the runs of a schedule, the latest first. Raises DispatcherError when it has no CronJob."""
    found = cron_jobs.cluster.get(f"{cron_jobs.path}/{name}")
    if found is None:
        raise DispatcherError(f"no CronJob {printable(name)}; `autolabs schedule list` has them all")
    task = task_of(found)
    jobs = {job["metadata"]["name"]: job for job in cron_jobs.jobs(name)}
    runs = _ledger(LEDGER_NAMES[task], name, limit, jobs, environ) if task in LEDGER_NAMES else []
    known = {run.job for run in runs}
    runs += [_of_job(job) for key, job in jobs.items() if key not in known]
    return sorted(runs, key=lambda run: run.began, reverse=True)[:limit]


def as_table(runs: list[Run]) -> str:
    if not runs:
        return "no run is known"
    now = datetime.now(timezone.utc)
    rows: list[tuple[object, ...]] = [("WHEN (UTC)", "TOOK", "OUTCOME", "BY", "JOB", "RESULT")]
    for run in runs:
        took = "" if run.duration_s is None else duration(run.duration_s)
        rows.append((clock(now, run.began), took, run.outcome, run.by, run.job, _result(run)))
    return table(rows)


def _result(run: Run) -> str:
    if run.error:
        return one_line(run.error, 120)
    return one_line(" ".join(f"{key}={value}" for key, value in _numbers(run.result or {})), 200)


def _numbers(result: Mapping[str, Any], of: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a run counted, by name; what is 0 says little, and --json has it."""
    for key, value in sorted(result.items(), key=lambda item: not isinstance(item[1], dict)):
        if isinstance(value, dict):
            yield from _numbers(value, f"{of}{key}.")
        elif value:
            yield f"{of}{key}", value


def _ledger(
    task_name: str, name: str, limit: int, jobs: Mapping[str, Manifest], environ: Mapping[str, str]
) -> list[Run]:
    database = Database(read_settings(environ, database_url), application_name="autolabs-schedule")
    own = rf"^{re.escape(name)}-(\d+|now-[0-9a-f]+)$"
    try:
        rows = database.fetch(_RUNS, (task_name, own, [*jobs], limit))
    finally:
        database.close()
    return [_of_row(row, jobs) for row in rows]


def _of_row(row: tuple[Any, ...], jobs: Mapping[str, Manifest]) -> Run:
    began, took, outcome, goes_on, queue, job, result, error = row
    if outcome == "started":
        # The Job knows better: a schedule may give its runs more time than a message has.
        state, why = job_outcome(jobs[job]) if job in jobs else ("running" if goes_on else LOST, "")
        if state != "running":
            took, outcome = None, LOST
            error = why or "its container ended without a result"
    return Run(began, took, outcome, "message" if queue else _by(job, jobs), job, result, error)


def _by(job: str, jobs: Mapping[str, Manifest]) -> str:
    return "hand" if "-now-" in job or _is_manual(jobs.get(job, {})) else "schedule"


def _is_manual(job: Manifest) -> bool:
    annotations = job.get("metadata", {}).get("annotations") or {}
    return annotations.get("cronjob.kubernetes.io/instantiate") == "manual"


def _of_job(job: Manifest) -> Run:
    metadata = job["metadata"]
    began = api_time(job.get("status", {}).get("startTime") or metadata["creationTimestamp"])
    began = began or datetime.now(timezone.utc)
    outcome, why = job_outcome(job)
    by = "hand" if _is_manual(job) else "schedule"
    return Run(began, job_duration_s(job), outcome, by, metadata["name"], None, why)
