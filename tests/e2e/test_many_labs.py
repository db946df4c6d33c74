"""A class that starts at nine: a burst, then singles; one Job per message, none lost, none doubled."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import pytest

from deploy.demo.platform import PLATFORM, Platform, eventually
from deploy.demo.timeline import JobWatch

BURST = 10
SINGLES = 4


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

    eventually(completed, timeout_s=30, what="every Job Complete")
    for lab_instance_id, task_id in labs.items():
        (run,) = platform.runs(lab_instance_id)
        lines = [json.loads(line) for line in platform.job_log(run["job_name"]).splitlines()]
        assert {line["task_id"] for line in lines} == {task_id}

    without = [
        name
        for name in set(jobs.created) - before - set(job_names)
        if '"action": "idle"' in platform.job_log(name)
    ]
    with capsys.disabled():
        print(f"\n{len(labs)} messages, {len(set(job_names))} Jobs, {len(without)} that found no message")
    assert not without
