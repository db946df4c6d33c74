"""A task that expires before a container takes it: its lab learns of it all the same."""

from __future__ import annotations

import pytest
from celery import Celery

from dispatcher import CREATE_LAB_POD, Dispatcher, celery_config
from dispatcher.broker import topology
from tests.support.broker.celery_versions import close_app
from tests.support.broker.rabbitmq import Broker
from tests.support.containers.container import Containers
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs
from tests.support.waiting import eventually, eventually_equal


@pytest.fixture(params=["dispatcher", "celery"])
def expired_task(request: pytest.FixtureRequest, broker: Broker, database: Database) -> tuple[str, int]:
    """The id and the lab of a create that nobody took in time."""
    lab = database.add_lab()
    kwargs = create_kwargs(lab_instance_id=lab)
    if request.param == "dispatcher":
        with Dispatcher(broker.url) as dispatcher:
            task_id = str(dispatcher.send_task(CREATE_LAB_POD, kwargs=kwargs, expires=1))
    else:
        app = Celery("backend", broker=broker.url, set_as_current=False)
        app.conf.update(celery_config())
        task_id = app.send_task(CREATE_LAB_POD, kwargs=kwargs, expires=1).id
        close_app(app)
    assert broker.depth(topology.QUEUE_NORMAL) == 1
    return task_id, lab


def test_what_the_broker_finds_expired_is_settled_by_a_container(
    expired_task: tuple[str, int], broker: Broker, database: Database, containers: Containers
) -> None:
    task_id, lab = expired_task
    eventually_equal(lambda: broker.depth(topology.QUEUE_LOW), 1)
    assert broker.depth(topology.QUEUE_NORMAL) == 0
    assert broker.take(topology.DEAD_LETTER_QUEUE).headers["id"] == task_id
    containers.start(queue=topology.QUEUE_LOW)
    # Its objects could not be looked for: no cluster answers here, so the task itself comes back.
    eventually(lambda: database.lab(lab)["status"] == "FAILED", what="the lab is FAILED")
    row = database.lab(lab)
    assert "expired before" in row["error_message"]
    assert database.ledger()[-1]["outcome"] == "revoked"


def test_a_dead_letter_of_a_task_that_had_expired_stays_dead(
    broker: Broker, database: Database, containers: Containers
) -> None:
    with Dispatcher(broker.url) as dispatcher:
        dispatcher.delete_lab(lab_instance_id=1, expires=1)
    eventually_equal(lambda: broker.depth(topology.QUEUE_LOW), 1)
    expired = broker.take(topology.QUEUE_LOW)
    broker.take(topology.DEAD_LETTER_QUEUE)
    broker.publish(topology.QUEUE_LOW, b"no JSON any more", headers=expired.headers)
    code, _ = containers.run_here(queue=topology.QUEUE_LOW)
    assert code == 0
    dead = broker.take(topology.DEAD_LETTER_QUEUE)
    assert "not JSON" in dead.headers["x-autolabs-reason"]
    assert dead.headers["x-death"][0]["reason"] == "expired"
    assert broker.is_empty()


def test_what_a_container_rejects_goes_to_the_dead_letters_alone(broker: Broker) -> None:
    broker.publish_task()
    channel = broker.channel()
    method, _, _ = channel.basic_get(topology.QUEUE_NORMAL)
    assert method is not None
    channel.basic_reject(method.delivery_tag, requeue=False)
    eventually_equal(lambda: broker.depth(topology.DEAD_LETTER_QUEUE), 1)
    assert broker.is_empty()
