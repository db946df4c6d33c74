"""What others may send: tasks of a real Celery app."""

from __future__ import annotations

import os

import pytest
from celery import Celery

from deploy.demo.platform import Platform
from dispatcher import celery_config


@pytest.mark.parametrize("configured", [True, False], ids=["our celery_config", "plain app"])
def test_a_lab_asked_for_by_real_celery_runs(
    platform: Platform, started: list[int], configured: bool
) -> None:
    app = Celery(broker=os.environ["AMQP_URL"])
    options: dict[str, str] = {}
    if configured:
        app.conf.update(celery_config())
    else:
        options = {"exchange": "autolabs.tasks", "routing_key": "lab.create"}
    lab_instance_id = platform.add_lab()
    started.append(lab_instance_id)
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
