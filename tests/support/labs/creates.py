"""Creates and deletes against an API server that a test scripts: what is there, what happens meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pika

from dispatcher.message.envelope import TaskMessage, encode
from jobs.config.environment import RetrySettings
from jobs.config.naming import lab_labels, lab_object_name
from jobs.container.consumer import Delivery, Settlement
from jobs.container.run_task import is_task, run_task
from jobs.errors import PermanentError
from jobs.failures import Failure
from jobs.handlers.context import Connections, TaskContext
from tests.support.cluster.fake_cluster import FakeCluster
from tests.support.database.postgres import Database
from tests.support.factories import IMAGE, make_record

PODS = "/api/v1/namespaces/labs/pods"
NO_SUCH_IMAGE = {
    "phase": "Pending",
    "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "x: not found"}}}],
}
#: A container in a crash loop.
CRASHED: dict[str, Any] = {
    "phase": "Running",
    "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}],
    "containerStatuses": [
        {
            "name": "lab",
            "restartCount": 2,
            "ready": False,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s"}},
            "lastState": {"terminated": {"exitCode": 3, "reason": "Error", "message": "bye"}},
        }
    ],
}
NO_ROOM = {"phase": "Failed", "reason": "Evicted", "message": "disk"}
ERROR = PermanentError(Failure.IMAGE_NOT_LOADABLE, "The image is wrong.")
LAST_TRY = RetrySettings(max_retries=0, jitter=False)


def context_of(connections: Connections, lab: int, **changes: Any) -> TaskContext:
    return TaskContext(connections, make_record(lab, **changes))


def name_of(lab: int, image: str = IMAGE) -> str:
    return lab_object_name(lab, image)


def add_pod(cluster: FakeCluster, lab: int, name: str) -> str:
    path = f"{PODS}/{name}"
    cluster.add(path, {"kind": "Pod", "metadata": {"name": name, "labels": lab_labels(lab, 7, 42)}})
    return path


def set_lab(database: Database, lab: int, status: str, pod_name: str | None = None) -> None:
    statement = "UPDATE lab_instances SET status = %s, k8s_pod_name = %s WHERE id = %s"
    database.rows(statement, status, pod_name, lab)


def delivery_of(task: TaskMessage) -> Delivery:
    body, sent = encode(task)
    return Delivery(body, pika.BasicProperties(**sent), "lab.create", redelivered=False, tag=1)


def settle(connections: Connections, task: TaskMessage) -> None:
    """Run a task as a container does, up to its settlement."""
    assert run_task(connections, delivery_of(task), {}) is not Settlement.NACK
    assert is_task(delivery_of(task))


def when_created(cluster: FakeCluster, kind: str, act: Callable[[], object]) -> None:
    def on_create(path: str) -> None:
        if f"/{kind}/" in path:
            act()

    cluster.on_create = on_create
