"""A class that starts at nine: a burst, then singles; one Job per message, none lost, none doubled."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable

import pytest

from deploy.demo.platform import PLATFORM, Platform, eventually
from deploy.demo.timeline import JobWatch

BURST = 10
SINGLES = 4


def _spares() -> int:
    command = ["kubectl", "get", "scaledjob", "lab-operations", "-n", PLATFORM]
    command.append("--output=jsonpath={.spec.minReplicaCount}")
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout or 0)


def _jobs_without_a_run(platform: Platform, new: set[str]) -> set[str]:
    """Return the new Jobs of the queue that are in no row of the ledger, waiting or over."""
    of_queue = platform.batch.list_namespaced_job(
        PLATFORM, label_selector="autolabs.io/queue=celery.lab_operations"
    )
    names = new & {job.metadata.name for job in of_queue.items}
    rows = platform.query("SELECT job_name FROM task_ledger WHERE job_name = ANY(%s)", sorted(names))
    return names - {row["job_name"] for row in rows}


@pytest.mark.timeout(300)
def test_ten_at_once_then_singles(
    platform: Platform,
    jobs: JobWatch,
    start_lab: Callable[..., tuple[int, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = set(jobs.created)
    labs = dict(start_lab() for _ in range(BURST))
    for lab_instance_id in labs:
        assert platform.wait_for_status(lab_instance_id, "RUNNING", "FAILED").status == "RUNNING"
    for _ in range(SINGLES):
        lab_instance_id, task_id = start_lab()
        labs[lab_instance_id] = task_id
        assert platform.wait_for_status(lab_instance_id, "RUNNING", "FAILED").status == "RUNNING"

    runs = [run for lab_instance_id in labs for run in platform.runs(lab_instance_id)]
    assert Counter(run["task_id"] for run in runs) == Counter(labs.values())
    job_names = [run["job_name"] for run in runs]
    assert len(set(job_names)) == len(labs), "a Job served two messages"

    def completed() -> bool:
        statuses = [platform.batch.read_namespaced_job_status(name, PLATFORM).status for name in job_names]
        return all(status.succeeded == 1 and not status.failed for status in statuses)

    eventually(completed, timeout_s=90, what="every Job Complete")
    for lab_instance_id, task_id in labs.items():
        (run,) = platform.runs(lab_instance_id)
        lines = [json.loads(line) for line in platform.job_log(run["job_name"]).splitlines()]
        assert {line["task_id"] for line in lines} == {task_id}

    spares = _spares()
    unserved = _jobs_without_a_run(platform, set(jobs.created) - before)
    found_none = max(0, len(unserved) - spares)
    with capsys.disabled():
        print(
            f"\n{len(labs)} messages, {len(set(job_names))} Jobs,"
            f" {found_none} Jobs that found no message (spares aside)"
        )
    assert len(unserved) <= spares, f"{spares} may wait for a message, these do: {sorted(unserved)}"
