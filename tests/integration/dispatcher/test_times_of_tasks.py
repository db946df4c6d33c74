"""When a task is run: tried again later, waited for until its time, or no more."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest

from dispatcher.broker import delay_ladder, topology
from dispatcher.tasks import CLEANUP_TIMEOUT_LABS
from tests.support.broker.rabbitmq import Broker
from tests.support.containers.container import Containers
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_task, make_wire
from tests.support.waiting import eventually

INVALID = "PERMANENT_INVALID_REQUEST"


def test_a_create_ahead_of_its_row_is_tried_again_under_its_id(
    containers: Containers, broker: Broker, database: Database
) -> None:
    task_id = broker.publish_task(kwargs=create_kwargs(lab_instance_id=4711))
    code, _ = containers.run_here(CELERY_TASK_RETRY_DELAY=0.3)
    assert code == 0
    (run,) = database.ledger()
    assert (run["task_id"], run["outcome"], run["attempt"]) == (task_id, "retried", 1)
    assert (run["error_category"], run["details"]["cause"]) == (INVALID, "lab_unknown")
    message = broker.take(topology.QUEUE_NORMAL)
    assert (message.headers["id"], message.headers["retries"]) == (task_id, 1)
    assert json.loads(message.body)[1] == create_kwargs(lab_instance_id=4711)


def test_each_retry_waits_longer_on_the_ladder(containers: Containers, broker: Broker) -> None:
    broker.publish_task(kwargs=create_kwargs(lab_instance_id=4711), retries=2)
    containers.run_here()
    assert broker.take_delayed().delay_s == 20


@pytest.mark.parametrize(("retries", "allowed"), [(0, 0), (3, 3), (7, 3)])
def test_after_the_last_retry_the_lab_is_failed_and_the_message_kept(
    containers: Containers, broker: Broker, database: Database, retries: int, allowed: int
) -> None:
    task_id = broker.publish_task(kwargs=create_kwargs(lab_instance_id=4711), retries=retries)
    code, _ = containers.run_here(CELERY_TASK_MAX_RETRIES=allowed)
    assert code == 0
    message = broker.take(topology.DEAD_LETTER_QUEUE)
    assert message.headers["id"] == task_id
    assert message.headers["x-autolabs-cause"] == "lab_unknown"
    assert message.headers["x-autolabs-attempts"] == retries + 1
    assert f"tried {retries + 1} times" in message.headers["x-autolabs-reason"] or retries == 0
    assert database.outcomes() == ["dead_lettered"]
    assert broker.is_empty()


def test_a_retry_that_cannot_be_published_gives_the_message_back(
    containers: Containers, broker: Broker
) -> None:
    broker.channel().exchange_delete(delay_ladder.ENTRY_EXCHANGE)
    task_id = broker.publish_task(kwargs=create_kwargs(lab_instance_id=4711))
    code, _ = containers.run_here()
    assert code == 75
    message = broker.take(topology.QUEUE_NORMAL)
    assert (message.headers["id"], message.redelivered) == (task_id, True)


def test_a_task_that_is_not_due_waits_on_the_ladder_as_it_is(
    containers: Containers, broker: Broker, database: Database
) -> None:
    eta = datetime.now(timezone.utc) + timedelta(hours=5)
    task_id = broker.publish_task(name=CLEANUP_TIMEOUT_LABS, kwargs={}, eta=eta)
    code, _ = containers.run_here(queue=topology.QUEUE_LOW)
    assert code == 0
    message = broker.take_delayed()
    assert 5 * 3600 - 60 < message.delay_s <= 5 * 3600
    assert (message.headers["id"], message.headers["retries"]) == (task_id, 0)
    assert datetime.fromisoformat(message.headers["eta"]) == eta
    assert database.ledger() == []


def test_a_request_that_ran_out_is_not_run(
    containers: Containers, broker: Broker, database: Database
) -> None:
    lab = database.add_lab()
    long_ago = datetime.now(timezone.utc) - timedelta(hours=1)
    task = make_task(kwargs=create_kwargs(lab_instance_id=lab), expires=long_ago)
    body, headers = make_wire(task)
    broker.publish(topology.QUEUE_NORMAL, body, headers=headers)
    code, _ = containers.run_here()
    assert code == 0
    assert database.lab(lab)["status"] == "FAILED"
    assert "send it again" in database.lab(lab)["error_message"]


def test_a_task_that_is_due_within_a_second_is_waited_for(
    containers: Containers, broker: Broker, database: Database
) -> None:
    process = containers.start(queue=topology.QUEUE_LOW, CLAIM_WAIT_S=20)
    eventually(lambda: broker.consumers(topology.QUEUE_LOW) == 1)
    eta = datetime.now(timezone.utc) + timedelta(seconds=0.9)
    broker.publish_task(name=CLEANUP_TIMEOUT_LABS, kwargs={}, eta=eta)
    assert process.wait() == 0
    (run,) = database.ledger()
    assert run["outcome"] == "succeeded"
    assert run["finished_at"] >= eta
    assert broker.delayed() == 0


def test_a_task_that_ran_out_does_not_wait_for_its_time(
    containers: Containers, broker: Broker, database: Database
) -> None:
    now = datetime.now(timezone.utc)
    later, before = now + timedelta(hours=5), now - timedelta(seconds=1)
    body, headers = make_wire(make_task(eta=later, expires=before))
    broker.publish(topology.QUEUE_NORMAL, body, headers=headers)
    code, _ = containers.run_here()
    assert code == 0
    assert broker.delayed() == 0
    assert len(database.ledger()) == 1
