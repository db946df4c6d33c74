"""One lab from its request to its end, and the ways it can go wrong, on the real platform."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kubernetes import client

from deploy.demo.platform import LABS, PLATFORM, Platform, eventually
from jobs.config.lab_settings import LabSettings
from jobs.config.naming import lab_labels, lab_object_name

StartLab = Callable[..., tuple[int, str]]

pytestmark = pytest.mark.timeout(300)

#: Seconds that only end a hang.
DONE_S, GONE_S = 90, 60
#: Seconds that a lab has to get Ready.
READY_TIMEOUT_S = LabSettings(allowed_images=[]).ready_timeout_s


def _ended_runs(platform: Platform, lab_instance_id: int) -> list[dict[str, Any]]:
    return [run for run in platform.runs(lab_instance_id) if run["finished_at"]]


def _log_lines(platform: Platform, job_name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in platform.job_log(job_name).splitlines()]


def test_a_lab_starts_answers_and_stops(platform: Platform, start_lab: StartLab) -> None:
    lab_instance_id, task_id = start_lab()
    row = platform.wait_for_status(lab_instance_id, "RUNNING", "FAILED")
    assert row.status == "RUNNING", row
    assert row.k8s_pod_name == f"lab-instance-{lab_instance_id}-demo"
    assert row.connection_url is not None
    with urllib.request.urlopen(row.connection_url, timeout=30) as response:
        assert str(lab_instance_id) in response.read().decode()
    pod = platform.core.read_namespaced_pod(row.k8s_pod_name, LABS)
    assert pod.metadata.labels["lab_instance_id"] == str(lab_instance_id)
    assert (pod.metadata.labels["lab_id"], pod.metadata.labels["student_id"]) == ("456", "789")
    assert pod.spec.automount_service_account_token is False
    assert len(platform.objects_of(lab_instance_id)) == 3

    (run,) = platform.runs(lab_instance_id)
    assert (run["task_id"], run["outcome"], run["attempt"]) == (task_id, "succeeded", 1)
    assert set(run["details"]["configs"]) == {
        "manifests/lab-pod-template.yaml",
        "manifests/network-policy-template.yaml",
        "settings/celery-workers-config.yaml",
    }

    platform.dispatcher.delete_lab(lab_instance_id=lab_instance_id, k8s_pod_name=row.k8s_pod_name)
    platform.wait_for_status(lab_instance_id, "STOPPED")
    eventually(lambda: not platform.objects_of(lab_instance_id), timeout_s=GONE_S, what="objects gone")


def test_the_log_of_a_job_tells_the_story_of_its_task_alone(platform: Platform, running_lab: int) -> None:
    (run,) = platform.runs(running_lab)
    lines = eventually(
        lambda: (
            [*_log_lines(platform, run["job_name"])] if "done" in platform.job_log(run["job_name"]) else None
        ),
        timeout_s=DONE_S,
        what="end of the log",
    )
    assert {line["task_id"] for line in lines} == {run["task_id"]}
    actions = [line.get("action") for line in lines]
    assert actions[0] == "claimed"
    assert actions[-2:] == ["lab_running", "done"]


def test_resources_of_the_specification_can_be_asked_for(platform: Platform, running_lab: int) -> None:
    pod = platform.core.read_namespaced_pod(platform.lab(running_lab).k8s_pod_name, LABS)
    limits = pod.spec.containers[0].resources.limits
    assert (limits["cpu"], limits["memory"]) == ("500m", "512Mi")


@pytest.mark.parametrize(
    "image",
    [
        "registry.gitlab.com/autolabs/labs/does-not-exist:v999",
        "example.org/somebody/else:1",
    ],
    ids=["unknown", "not allowed"],
)
def test_an_unusable_image_fails_within_seconds_with_a_reason(
    platform: Platform, start_lab: StartLab, image: str
) -> None:
    lab_instance_id, _ = start_lab(image=image)
    row = platform.wait_for_status(lab_instance_id, "FAILED", "RUNNING")
    assert row.error_category == "PERMANENT_IMAGE_ERROR"
    assert row.error_message is not None
    assert image in row.error_message
    assert "teacher" in row.error_message
    assert row.failed_at is not None
    (run,) = platform.runs(lab_instance_id)
    assert (run["attempt"], run["outcome"]) == (1, "failed"), "it was tried again"
    took_s = (run["finished_at"] - run["claimed_at"]).total_seconds()
    assert took_s < READY_TIMEOUT_S, "the time for a lab to get Ready was waited out"
    print(f"FAILED {took_s:.1f} s after the claim")
    eventually(lambda: not platform.objects_of(lab_instance_id), timeout_s=GONE_S, what="objects gone")


def test_a_second_delivery_of_a_create_leaves_one_lab(platform: Platform, start_lab: StartLab) -> None:
    lab_instance_id, task_id = start_lab()
    platform.dispatcher.create_lab(
        lab_instance_id=lab_instance_id,
        lab_id=456,
        student_id=789,
        docker_image=platform.lab_image,
        task_id=task_id,
    )
    platform.wait_for_status(lab_instance_id, "RUNNING")
    runs = eventually(
        lambda: runs if len(runs := _ended_runs(platform, lab_instance_id)) == 2 else None,
        timeout_s=DONE_S,
        what="both deliveries done",
    )
    assert sorted(run["outcome"] for run in runs) == ["noop", "succeeded"]
    assert platform.lab(lab_instance_id).status == "RUNNING"
    assert len(platform.objects_of(lab_instance_id)) == 3


def test_a_stop_that_overtakes_its_start_leaves_nothing(platform: Platform, start_lab: StartLab) -> None:
    lab_instance_id, _ = start_lab()
    platform.dispatcher.delete_lab(lab_instance_id=lab_instance_id)
    platform.wait_for_status(lab_instance_id, "STOPPED")
    eventually(
        lambda: len(_ended_runs(platform, lab_instance_id)) == 2, timeout_s=DONE_S, what="both tasks done"
    )
    assert platform.lab(lab_instance_id).status == "STOPPED"
    eventually(lambda: not platform.objects_of(lab_instance_id), timeout_s=GONE_S, what="objects gone")


@contextmanager
def _service_in_the_way(platform: Platform, lab_instance_id: int) -> Iterator[None]:
    """Let the lab's create wait with its Pod applied: a Service of its name will not go."""
    name = lab_object_name(lab_instance_id, platform.lab_image)
    metadata = {
        "name": name,
        "labels": lab_labels(lab_instance_id, 456, 789),
        "finalizers": ["autolabs.io/test"],
    }
    platform.core.create_namespaced_service(LABS, {"metadata": metadata, "spec": {"ports": [{"port": 8080}]}})
    try:
        yield
    finally:
        platform.core.patch_namespaced_service(name, LABS, {"metadata": {"finalizers": None}})


def _pods_of(platform: Platform, lab_instance_id: int) -> list[Any]:
    selector = f"lab_instance_id={lab_instance_id}"
    return list(platform.core.list_namespaced_pod(LABS, label_selector=selector).items)


def _holder(platform: Platform, lab_instance_id: int) -> str | None:
    """Return the job's pod that works on the lab: its log names that lab and no other."""
    queue = "autolabs.io/queue=celery.lab_operations"
    for pod in platform.core.list_namespaced_pod(PLATFORM, label_selector=queue).items:
        job_name = pod.metadata.labels["batch.kubernetes.io/job-name"]
        if pod.status.phase == "Running" and lab_instance_id in _labs_in_log(platform, job_name):
            return str(pod.metadata.name)
    return None


def _labs_in_log(platform: Platform, job_name: str) -> list[object]:
    try:
        return [line.get("lab_instance_id") for line in _log_lines(platform, job_name)]
    except (ValueError, client.ApiException):
        # Its container has gone since the list, and what there is instead of the log is the kubelet's word.
        return []


def test_a_killed_container_is_followed_by_another_that_finishes(
    platform: Platform, started: list[int]
) -> None:
    lab_instance_id = platform.add_lab()
    started.append(lab_instance_id)
    with _service_in_the_way(platform, lab_instance_id):
        platform.dispatcher.create_lab(
            lab_instance_id=lab_instance_id, lab_id=456, student_id=789, docker_image=platform.lab_image
        )
        (pod,) = eventually(
            lambda: _pods_of(platform, lab_instance_id), timeout_s=DONE_S, what="the lab's pod applied"
        )
        killed = eventually(
            lambda: _holder(platform, lab_instance_id), timeout_s=DONE_S, what="the container that applied it"
        )
        platform.core.delete_namespaced_pod(killed, PLATFORM, grace_period_seconds=0)
        assert platform.lab(lab_instance_id).status == "PENDING"
        successor = eventually(
            lambda: name if (name := _holder(platform, lab_instance_id)) != killed else None,
            timeout_s=DONE_S,
            what="another container with the message",
        )
    platform.wait_for_status(lab_instance_id, "RUNNING")
    first, second = platform.runs(lab_instance_id)
    assert (first["pod_name"], first["outcome"]) == (killed, "started")
    assert (second["pod_name"], second["redelivered"], second["outcome"]) == (successor, True, "succeeded")
    # Adopted, not made anew.
    assert [p.metadata.uid for p in _pods_of(platform, lab_instance_id)] == [pod.metadata.uid]
    assert len(platform.objects_of(lab_instance_id)) == 3
