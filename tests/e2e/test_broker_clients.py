"""What others may send: a real Celery app, and messages that are no tasks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from celery import Celery

from deploy.demo.platform import PLATFORM, Platform, eventually
from deploy.demo.timeline import JobWatch
from dispatcher import celery_config

StartLab = Callable[..., tuple[int, str]]


@pytest.fixture
def channel() -> Iterator[Any]:
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
    yield connection.channel()
    connection.close()


@pytest.mark.parametrize("configured", [True, False], ids=["our celery_config", "plain app"])
def test_a_lab_asked_for_by_real_celery_runs(platform: Platform, configured: bool) -> None:
    app = Celery(broker=os.environ["AMQP_URL"])
    options: dict[str, str] = {}
    if configured:
        app.conf.update(celery_config())
    else:
        options = {"exchange": "autolabs.tasks", "routing_key": "lab.create"}
    lab_instance_id = platform.add_lab()
    result = app.send_task(
        "celery_workers.create_lab_pod",
        kwargs={
            "lab_instance_id": lab_instance_id,
            "lab_id": 456,
            "student_id": 789,
            "docker_image": platform.lab_image,
            "resources": {"cpu": "500m", "memory": "512Mi"},
        },
        **options,
    )
    row = platform.wait_for_status(lab_instance_id, "RUNNING", "FAILED")
    assert (row.status, row.celery_task_id) == ("RUNNING", result.id)
    app.send_task(
        "celery_workers.delete_lab_pod",
        kwargs={"lab_instance_id": lab_instance_id, "force": True},
        **(options and {**options, "routing_key": "lab.delete"}),
    )
    platform.wait_for_status(lab_instance_id, "STOPPED")
    app.close()


def _poison(lab_instance_id: int) -> dict[str, tuple[bytes, dict[str, Any], str]]:
    headers = {"task": "celery_workers.create_lab_pod", "id": f"poison-{lab_instance_id}"}
    kwargs = {
        "lab_instance_id": lab_instance_id,
        "lab_id": "; DROP TABLE",
        "student_id": 1,
        "docker_image": "x",
    }
    return {
        "not JSON": (b"{", headers, "application/json"),
        "no headers": (b"[]", {}, "application/json"),
        "pickle": (b"\x80\x04N.", headers, "application/x-python-serialize"),
        "unknown task": (b"[[], {}, {}]", headers | {"task": "os.system"}, "application/json"),
        "wrong type": (json.dumps([[], kwargs, {}]).encode(), headers, "application/json"),
    }


@pytest.mark.timeout(200)
def test_poison_ends_in_the_dead_letter_queue_and_the_job_completes(
    platform: Platform, jobs: JobWatch, channel: Any, start_lab: StartLab
) -> None:
    channel.queue_purge("celery.dlq")
    before = set(jobs.created)
    lab_instance_id = platform.add_lab()
    poison = _poison(lab_instance_id)
    for body, headers, content_type in poison.values():
        properties = pika.BasicProperties(headers=headers, content_type=content_type, delivery_mode=2)
        channel.basic_publish("autolabs.tasks", "lab.create", body, properties)
    good_id, _ = start_lab()

    dead: list[dict[str, Any]] = []

    def all_dead() -> bool:
        method, properties, _ = channel.basic_get("celery.dlq", auto_ack=True)
        if method is not None:
            dead.append(properties.headers)
        return len(dead) == len(poison)

    eventually(all_dead, timeout_s=60, what="all poison in celery.dlq", last=lambda: dead)
    assert all(headers["x-autolabs-reason"] for headers in dead)
    assert {headers["x-autolabs-category"] for headers in dead} == {"PERMANENT_INVALID_REQUEST"}
    row = platform.lab(lab_instance_id)
    assert (row.status, row.error_category) == ("FAILED", "PERMANENT_INVALID_REQUEST")
    assert platform.wait_for_status(good_id, "RUNNING", "FAILED").status == "RUNNING"

    served = {headers["x-autolabs-job"] for headers in dead}
    assert len(served) == len(poison)

    def completed() -> bool:
        statuses = [platform.batch.read_namespaced_job_status(name, PLATFORM).status for name in served]
        return all(status.succeeded == 1 and not status.failed for status in statuses)

    eventually(completed, timeout_s=30, what="Jobs of poison Complete")
    assert len(served - before) >= len(poison) - 2, "only the spares were there before"
