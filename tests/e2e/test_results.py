"""What a backend learns of its tasks on the real platform: from the ledger, and through Redis."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from celery import Celery

from deploy.demo.platform import Platform
from dispatcher import celery_config
from dispatcher.results import ResultStore, TaskState
from dispatcher.tasks import CREATE_LAB_POD, DELETE_LAB_POD


@pytest.fixture
def redis_url() -> str:
    """The Redis that the platform's containers store results in."""
    return os.environ["REDIS_URL"]


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    app = Celery("backend", broker=os.environ["AMQP_URL"], backend=redis_url, set_as_current=False)
    app.conf.update(celery_config())
    yield app
    app.backend.result_consumer.stop()
    app.close()


@pytest.fixture
def results() -> Iterator[ResultStore]:
    store = ResultStore(os.environ["DATABASE_URL"])
    yield store
    store.close()


def test_a_celery_backend_gets_the_results_of_a_lab_from_its_start_to_its_stop(
    platform: Platform, started: list[int], app: Celery, results: ResultStore
) -> None:
    lab = platform.add_lab()
    started.append(lab)
    kwargs = {"lab_instance_id": lab, "lab_id": 456, "student_id": 789, "docker_image": platform.lab_image}
    create = app.send_task(CREATE_LAB_POD, kwargs=kwargs)
    running = create.get(timeout=60)
    row = platform.lab(lab)
    assert running == {
        "lab_instance_id": lab,
        "status": "RUNNING",
        "k8s_pod_name": row.k8s_pod_name,
        "connection_url": row.connection_url,
    }
    assert results.status(create.id).result == running
    delete = app.send_task(DELETE_LAB_POD, kwargs={"lab_instance_id": lab})
    assert delete.get(timeout=60) == {"lab_instance_id": lab, "status": "STOPPED"}
    assert results.wait(delete.id, 30).state is TaskState.SUCCESS


def test_a_create_that_is_cancelled_before_it_began_starts_no_lab(
    platform: Platform, started: list[int], results: ResultStore
) -> None:
    lab = platform.add_lab()
    started.append(lab)
    task_id = f"cancelled-{lab}"
    assert results.cancel(task_id).state is TaskState.REVOKED
    platform.dispatcher.create_lab(
        lab_instance_id=lab, lab_id=456, student_id=789, docker_image=platform.lab_image, task_id=task_id
    )
    platform.wait_for_status(lab, "STOPPED")
    assert platform.objects_of(lab) == []
    (run,) = platform.runs(lab)
    assert (run["task_id"], run["outcome"]) == (task_id, "revoked")
