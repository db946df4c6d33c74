"""Run a schedule by hand: make a Job of its CronJob, and print the log as it comes."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from typing import Any

from console.schedules.cron_jobs import CronJobs, is_ours, job_outcome, task_of
from cronjobs.timetable import TASKS, option_word
from dispatcher.cli.program import complain
from dispatcher.errors import DispatcherError
from dispatcher.wording import duration, one_line, printable
from jobs.cluster.client import ApiError, ApiUnavailable, Manifest

#: Seconds for one call that makes the Job.
_CREATE_S = 15
#: Seconds between two looks at a Job, and between two words about one that does not start.
_LOOK_S = 0.5
_TELL_S = 10.0
#: Characters that a name of a Job may have before our suffix.
_NAME_LENGTH = 52


def job_for(cron_jobs: CronJobs, name: str, options: list[str]) -> Manifest:
    """Return a Job of a CronJob, to be made.

    Raises DispatcherError when there is no such CronJob, or when a run goes on that forbids another.
    """
    found = cron_jobs.cluster.get(f"{cron_jobs.path}/{name}")
    if found is None or not is_ours(found):
        known = ", ".join(key for key, item in cron_jobs.live().items() if is_ours(item))
        raise DispatcherError(f"no CronJob {printable(name)} of ours; there are {known or 'none'}")
    allowed = [option_word(option) for option in TASKS.get(task_of(found), ())]
    if wrong := [option for option in options if option not in allowed]:
        raise DispatcherError(f"{name} takes no {', '.join(wrong)}; allowed are {', '.join(allowed)}")
    # A dry run changes nothing, so that it may go on beside another.
    if found["spec"].get("concurrencyPolicy") == "Forbid" and option_word("dry_run") not in options:
        running = [job for job in cron_jobs.jobs(name) if job_outcome(job)[0] == "running"]
        if running:
            goes_on = f"{running[0]['metadata']['name']} runs already"
            raise DispatcherError(f"{goes_on}, and concurrency of {name} is Forbid: wait for it")
    return make_job(found, options)


def create(cron_jobs: CronJobs, job: Manifest) -> None:
    """Make a Job. Raises DispatcherError when its name is taken."""
    if not cron_jobs.cluster.create_once(cron_jobs.jobs_path, job, timeout_s=_CREATE_S):
        raise DispatcherError(f"a Job {job['metadata']['name']} exists already; run the command again")


def make_job(cron_job: Manifest, options: list[str]) -> Manifest:
    """Return a Job of the template of a CronJob, with more options for its command."""
    template, metadata = cron_job["spec"]["jobTemplate"], cron_job["metadata"]
    owner = {key: metadata[key] for key in ("name", "uid")} | {"apiVersion": "batch/v1", "kind": "CronJob"}
    spec: dict[str, Any] = dict(template["spec"])
    if options:
        pod = spec["template"]
        first, *others = pod["spec"]["containers"]
        command = [*first["command"], *(word for word in options if word not in first["command"])]
        containers = [{**first, "command": command}, *others]
        spec["template"] = {**pod, "spec": {**pod["spec"], "containers": containers}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"{metadata['name'][:_NAME_LENGTH]}-now-{secrets.token_hex(3)}",
            "namespace": metadata["namespace"],
            "labels": template["metadata"].get("labels", {}),
            "annotations": {"cronjob.kubernetes.io/instantiate": "manual"},
            # Not its controller: that would count it in the history and take it away while its log is read.
            "ownerReferences": [owner],
        },
        "spec": spec,
    }


def follow(cron_jobs: CronJobs, name: str) -> int:
    """Print the log of a Job as it comes; return 0 once it is complete, 1 if it failed."""

    def begun() -> Manifest | None:
        pod = _pod(cron_jobs, name)
        return pod if pod and pod.get("status", {}).get("phase") not in (None, "Pending") else None

    if (pod := _wait(cron_jobs, name, begun)) is not None:
        _print_log(cron_jobs, pod)
    _wait(cron_jobs, name, lambda: None)
    outcome, why = job_outcome(_job(cron_jobs, name))
    return 0 if outcome == "succeeded" else complain(f"the Job {name} failed: {one_line(why)}", 1)


def _job(cron_jobs: CronJobs, name: str) -> Manifest:
    job = cron_jobs.cluster.get(f"{cron_jobs.jobs_path}/{name}")
    if job is None:
        raise DispatcherError(f"the Job {name} is gone: somebody deleted it, or its time to live is over")
    return job


def _wait(cron_jobs: CronJobs, name: str, look: Callable[[], Manifest | None]) -> Manifest | None:
    """Return what `look` finds; None once the Job is over."""
    started = told = time.monotonic()
    while True:
        if seen := look():
            return seen
        if job_outcome(_job(cron_jobs, name))[0] != "running":
            return None
        if time.monotonic() - told > _TELL_S:
            told = time.monotonic()
            print(f"... {_waits_for(cron_jobs, name)}, for {duration(told - started)}", file=sys.stderr)
        time.sleep(_LOOK_S)


def _pod(cron_jobs: CronJobs, name: str) -> Manifest | None:
    path = f"/api/v1/namespaces/{cron_jobs.namespace}/pods"
    items, _ = cron_jobs.cluster.list_items(path, labelSelector=f"batch.kubernetes.io/job-name={name}")
    return items[0] if items else None


def _waits_for(cron_jobs: CronJobs, name: str) -> str:
    pod = _pod(cron_jobs, name)
    if pod is None:
        return f"the Job {name} has no pod yet"
    status = pod.get("status", {})
    states = [one.get("state", {}) for one in status.get("containerStatuses", [])]
    reasons = [one["waiting"].get("reason", "") for one in states if "waiting" in one]
    reasons += [
        f"{one.get('reason', '')} {one.get('message', '')}"
        for one in status.get("conditions", [])
        if one["status"] == "False" and one["type"] == "PodScheduled"
    ]
    return f"its pod is {status.get('phase', 'new')} ({one_line('; '.join(reasons)) or 'no reason given'})"


def _print_log(cron_jobs: CronJobs, pod: Manifest) -> None:
    metadata = pod["metadata"]
    path = f"/api/v1/namespaces/{cron_jobs.namespace}/pods/{metadata['name']}/log"
    # A run may be silent for as long as it may take.
    timeout_s = float(pod["spec"].get("activeDeadlineSeconds") or 86_400)
    try:
        for line in cron_jobs.cluster.follow(path, timeout_s=timeout_s, follow="true"):
            print(printable(line.decode(errors="backslashreplace")), flush=True)
    except (ApiUnavailable, ApiError) as exc:
        print(f"... the log broke off: {one_line(str(exc))}", file=sys.stderr)
