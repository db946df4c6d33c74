"""Labs past their time, as the CronJob and as a message end them, and as a student keeps one."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable

import pytest

from deploy.demo.platform import LABS, PLATFORM, Platform, eventually
from dispatcher import CLEANUP_TIMEOUT_LABS, LabIsOver

StartLab = Callable[..., tuple[int, str]]
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def two_labs(platform: Platform, start_lab: StartLab) -> tuple[int, int]:
    """Two labs whose time is over."""
    first, second = start_lab()[0], start_lab()[0]
    for lab in (first, second):
        platform.wait_for_status(lab, "RUNNING")
    over = "UPDATE lab_instances SET expires_at = now() - interval '1 second' WHERE id IN (%s, %s)"
    platform.query(over, first, second)
    return first, second


def start_cleanup() -> str:
    """Run the CronJob's Job now, and return its name."""
    name = f"cleanup-test-{uuid.uuid4().hex[:8]}"
    source = "--from=cronjob/cleanup-timeout-labs"
    subprocess.run(["kubectl", "create", "job", source, name, "-n", PLATFORM], check=True)
    return name


def wait_for_job(platform: Platform, name: str) -> None:
    def over() -> bool:
        status = platform.batch.read_namespaced_job_status(name, PLATFORM).status
        assert not status.failed, f"job {name} failed"
        return bool(status.succeeded)

    eventually(over, timeout_s=90, what=f"job {name} succeeds")


def deletes_of(platform: Platform, lab: int) -> list[str]:
    return [run["task_id"] for run in platform.runs(lab) if run["task_name"].endswith("delete_lab_pod")]


def test_a_lab_past_its_time_is_gone_within_one_run_and_an_extended_one_is_not(
    platform: Platform, two_labs: tuple[int, int]
) -> None:
    over, kept = two_labs
    seen = platform.dispatcher.lab_time(kept)
    extended = platform.dispatcher.extend_lab(kept, 30, ends_at=seen.ends_at)
    assert extended.minutes_left == 29
    wait_for_job(platform, start_cleanup())
    platform.wait_for_status(over, "STOPPED")
    eventually(lambda: not platform.objects_of(over), timeout_s=60, what="objects gone")
    assert len(deletes_of(platform, over)) == 1
    with pytest.raises(LabIsOver):
        platform.dispatcher.extend_lab(over, 30)
    assert platform.lab(kept).status == "RUNNING"
    assert len(platform.objects_of(kept)) == 3
    assert deletes_of(platform, kept) == []


def test_cleanups_as_jobs_and_as_messages_at_once_make_one_delete_each(
    platform: Platform, two_labs: tuple[int, int]
) -> None:
    messages = [platform.dispatcher.send_task(CLEANUP_TIMEOUT_LABS) for _ in range(2)]
    jobs = [start_cleanup() for _ in range(2)]
    for message in messages:
        assert message.get(timeout=90) is not None
    for job in jobs:
        wait_for_job(platform, job)
    for lab in two_labs:
        platform.wait_for_status(lab, "STOPPED")
        assert len(deletes_of(platform, lab)) == 1


def test_nothing_in_the_cluster_knows_when_a_lab_ends(platform: Platform, running_lab: int) -> None:
    """An extension changes the row alone, so no Pod may have a deadline of its own."""
    (pod,) = platform.core.list_namespaced_pod(LABS, label_selector=f"lab_instance_id={running_lab}").items
    assert pod.spec.active_deadline_seconds is None
