"""Secrets in messages of celery.dlq: no command shows them, whoever wrote them wherever."""

from __future__ import annotations

import json

import pytest
from celery import Celery

from dispatcher.broker import topology
from dispatcher.tasks import CREATE_LAB_POD
from tests.support.broker.dead_letters import DLQ, Dlq, bury, make_delete
from tests.support.broker.rabbitmq import Broker
from tests.support.database.postgres import Database

SECRET = "geheim"
TEXT = f"password={SECRET}1, amqp://user:{SECRET}2@host/, Authorization: Bearer {SECRET}3"


@pytest.fixture
def dlq(broker: Broker, database: Database) -> Dlq:
    return Dlq(broker, database)


def publish_as_celery(broker: Broker, task_id: str) -> None:
    """Put a task into celery.dlq with the headers and the body that Celery itself makes."""
    with Celery(broker="memory://", set_as_current=False) as app:
        kwargs = {"lab_instance_id": 3, "db_password": f"{SECRET}4", "command": f"run --token {SECRET}5"}
        made = app.amqp.as_task_v2(task_id, CREATE_LAB_POD, [f"amqp://u:{SECRET}6@h/"], kwargs)
    assert SECRET in made.headers["kwargsrepr"]
    headers = {**made.headers, "x-autolabs-reason": TEXT, "x-autolabs-cause": TEXT}
    headers |= {"x-autolabs-first-error": TEXT, "x-autolabs-last-error": TEXT, "odd": [{"any": TEXT}]}
    broker.publish(
        DLQ,
        json.dumps(made.body).encode(),
        headers=headers,
        content_type="application/json",
        content_encoding="utf-8",
    )


def test_a_task_of_a_celery_app_shows_its_secrets_to_nobody(dlq: Dlq, broker: Broker) -> None:
    publish_as_celery(broker, "celery-1")
    for command in (("list",), ("list", "--json"), ("show", "celery-1"), ("show", "celery-1", "--json")):
        shown = dlq(*command).out
        assert "celery-1" in shown
        assert SECRET not in shown
    for command in (("requeue", "celery-1"), ("discard", "celery-1"), ("requeue", "celery-1")):
        answer = dlq(*command)
        assert SECRET not in answer.out + answer.err
    (found,) = dlq.actions()
    assert SECRET in bytes(found["body"]).decode()


def test_a_body_that_is_no_task_is_shown_without_its_secrets(dlq: Dlq, broker: Broker) -> None:
    broker.publish(DLQ, f'{{"password": "{SECRET}7", token: {SECRET}8'.encode(), headers={"id": "odd-1"})
    shown = dlq("show", "odd-1").out
    assert '"password": ***' in json.loads(dlq("show", "odd-1", "--json").out)[0]["body"]
    assert SECRET not in shown


def test_what_names_a_message_is_shown_as_it_is(dlq: Dlq, broker: Broker) -> None:
    """The key alone in its line looks like a line of base64."""
    named = "a" * 64
    bury(broker, make_delete(7, id=named))
    (found,) = json.loads(dlq("show", named, "--json").out)
    assert (found["task_id"], len(found["key"]), found["queue"]) == (named, 64, topology.QUEUE_HIGH)
