"""When each step of a task happened: the publisher's clock, the cluster's watch, the task's ledger row."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from kubernetes import client, watch
from urllib3.exceptions import HTTPError

from deploy.demo.platform import PLATFORM, Platform


class JobWatch:
    """Note when each Job of the platform appears; the API's own timestamps have whole seconds."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._watch = watch.Watch()
        self._stopped = threading.Event()
        self.created: dict[str, datetime] = {}
        self._thread = threading.Thread(target=self._run, name="job-watch", daemon=True)

    def __enter__(self) -> JobWatch:
        self._version = self._list(lambda job: job.metadata.creation_timestamp)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._watch.stop()

    def _list(self, when: Callable[[Any], datetime]) -> str:
        """Note the Jobs that are there and return the version to watch from."""
        jobs = self._platform.batch.list_namespaced_job(PLATFORM)
        for job in jobs.items:
            self.created.setdefault(job.metadata.name, when(job))
        version: str = jobs.metadata.resource_version
        return version

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                for event in self._watch.stream(
                    self._platform.batch.list_namespaced_job,
                    PLATFORM,
                    resource_version=self._version,
                    timeout_seconds=30,
                ):
                    if event is None:
                        continue  # a line that broke off, as when the watch is stopped
                    self._version = event["object"].metadata.resource_version
                    if event["type"] == "ADDED":
                        self.created.setdefault(event["object"].metadata.name, datetime.now(timezone.utc))
            except client.ApiException:  # the version expired
                self._version = self._list(lambda _: datetime.now(timezone.utc))
            except HTTPError:
                time.sleep(0.1)  # the API server is away; the watch goes on where it was


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a timeline; seconds count from the publish, so a spare's start is negative."""

    name: str
    at: datetime
    after_s: float


def task_timeline(
    run: dict[str, Any], published_at: datetime, job_created_at: datetime | None, end: tuple[str, datetime]
) -> list[Step]:
    """Return the steps of one task from its ledger row, in order of time."""
    details = run["details"]
    claimed_at = datetime.fromisoformat(details["claimed_at"])
    moments = {
        "published": published_at,
        "Job created": job_created_at,
        "container started": datetime.fromisoformat(details["container_started_at"]),
        "message claimed": claimed_at,
        **{
            _STEP_NAMES.get(step, step): claimed_at + timedelta(seconds=elapsed_s)
            for step, elapsed_s in details.get("steps", {}).items()
        },
        end[0]: end[1],
    }
    steps = [
        Step(name, at, (at - published_at).total_seconds()) for name, at in moments.items() if at is not None
    ]
    return sorted(steps, key=lambda step: step.at)


_STEP_NAMES = {
    "rendered": "templates filled in",
    "applied": "objects applied",
    "ready": "pod Ready",
    "answers": "Service answers",
    "stop_requested": "tombstone set",
    "gone": "objects gone",
}


def print_timeline(steps: list[Step]) -> None:
    """Print one line per step: clock time, seconds after the publish, name."""
    for step in steps:
        print(f"    {step.at:%H:%M:%S.%f}"[:-3] + f"  {step.after_s:+8.3f} s  {step.name}")
