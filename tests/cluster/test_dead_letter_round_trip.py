"""A dead letter from its making by real containers to its success: list, mend, requeue, executed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from dispatcher.broker import topology
from dispatcher.results import TaskState
from tests.support.broker.dead_letters import DLQ
from tests.support.clearing import clear
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.containers.in_process import Answer, run_command
from tests.support.factories import create_kwargs

LAB = 4711
#: Seconds after which a container hangs, on however slow a machine.
HANGS_S = 180
pytestmark = pytest.mark.timeout(3 * HANGS_S)


@pytest.fixture(autouse=True)
def nothing_is_left(own_platform: OwnPlatform) -> Iterator[None]:
    yield
    clear(own_platform)


def test_a_dead_letter_is_performed_once_its_cause_is_mended(own_platform: OwnPlatform) -> None:
    broker, database, containers = own_platform.broker, own_platform.database, own_platform.containers

    def dlq(*words: str) -> Answer:
        return run_command("dlq", *words, environ={"AMQP_URL": broker.url, "DATABASE_URL": database.url})

    def perform() -> None:
        container = containers.start(
            queue=topology.QUEUE_NORMAL,
            CELERY_TASK_MAX_RETRIES=1,
            CELERY_TASK_RETRY_DELAY=0.1,
            CLAIM_WAIT_S=HANGS_S // 2,
        )
        assert container.wait(HANGS_S) == 0, container.log.read_text()

    kwargs = create_kwargs(lab_instance_id=LAB, docker_image=os.environ["LAB_IMAGE"])
    task_id = broker.publish_task(kwargs=kwargs)
    # The backend's row is missing. Two containers try it.
    for _ in range(2):
        perform()
    assert database.outcomes() == ["retried", "dead_lettered"]

    assert "lab_unknown" in dlq("list").out
    (letter,) = json.loads(dlq("list", "--json").out)["messages"]
    assert (letter["task_id"], letter["lab_instance_id"], letter["attempts"]) == (task_id, LAB, 2)
    assert letter["first_error"].startswith(f"Lab {LAB} is not in the database; it is tried again")
    assert "It was tried 2 times" in letter["last_error"]
    assert letter["reason"] == letter["last_error"]
    refused = dlq("requeue", task_id)
    assert (refused.code, f"lab {LAB} is not in the database" in refused.err) == (1, True)

    database.add_lab(id=LAB)
    assert dlq("requeue", task_id, "--actor", "ann").code == 0
    assert database.results.status(task_id).state is TaskState.FAILURE
    perform()
    assert database.lab(LAB)["status"] == "RUNNING", own_platform.evidence()
    assert database.results.status(task_id).state is TaskState.SUCCESS
    assert [(run["attempt"], run["outcome"]) for run in database.ledger()] == [
        (1, "retried"),
        (2, "dead_lettered"),
        (1, "succeeded"),
    ]
    assert broker.is_empty(DLQ, *topology.BINDINGS)
    again = dlq("requeue", task_id)
    assert (again.code, "requeued by ann" in again.out) == (0, True)
