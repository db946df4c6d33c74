"""Valid values that a test changes in the one place it is about."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from dispatcher.message.envelope import TaskMessage, encode, new_task_id
from dispatcher.tasks import CREATE_LAB_POD, CreateLabPod
from jobs.config.environment import StoreSettings
from jobs.database.ledger import TaskRunRecord

IMAGE = "registry.gitlab.com/autolabs/labs/demo:1.0.0"


def create_kwargs(**changes: Any) -> dict[str, Any]:
    valid = {"lab_instance_id": 12345, "lab_id": 7, "student_id": 42, "docker_image": IMAGE}
    return {**valid, **changes}


def make_payload(**changes: Any) -> CreateLabPod:
    return CreateLabPod(**create_kwargs(**changes))


def make_task(**changes: Any) -> TaskMessage:
    valid = {"name": CREATE_LAB_POD, "id": new_task_id(), "kwargs": create_kwargs()}
    return TaskMessage(**{**valid, **changes})


def make_wire(task: TaskMessage | None = None) -> tuple[bytes, dict[str, Any]]:
    body, properties = encode(task or make_task())
    return body, properties["headers"]


def make_record(lab_instance_id: int | None = None, **changes: Any) -> TaskRunRecord:
    valid: dict[str, Any] = {
        "task_id": new_task_id(),
        "task_name": CREATE_LAB_POD,
        "attempt": 1,
        "redelivered": False,
        "queue": "celery.lab_operations",
        "job_name": "lab-operations-x",
        "pod_name": "lab-operations-x-y",
        "published_at": datetime.now(timezone.utc),
        "lab_instance_id": lab_instance_id,
    }
    return TaskRunRecord(**{**valid, **changes})


def store_settings(endpoint: str = "http://127.0.0.1:9", bucket: str = "b") -> StoreSettings:
    return StoreSettings(endpoint=endpoint, access_key="key", secret_key="hidden", bucket=bucket)
