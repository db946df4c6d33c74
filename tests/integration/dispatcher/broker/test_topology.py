from __future__ import annotations

import pytest

from dispatcher.__main__ import main
from dispatcher.broker import delay_ladder, topology
from tests.support.broker.rabbitmq import LADDER, Broker
from tests.support.broker.routing import queue_for
from tests.support.factories import create_kwargs
from tests.support.waiting import eventually


def test_declaring_twice_changes_nothing(broker: Broker) -> None:
    before = broker.api.call("GET", f"/bindings/{broker.vhost}")
    broker.declare()
    assert broker.api.call("GET", f"/bindings/{broker.vhost}") == before


def test_every_queue_survives_and_is_quorum(broker: Broker) -> None:
    queues = {queue["name"]: queue for queue in broker.api.call("GET", f"/queues/{broker.vhost}")}
    expected = {*topology.BINDINGS, topology.DEAD_LETTER_QUEUE}
    assert set(queues) == expected | set(LADDER)
    assert all(q["durable"] and q["arguments"]["x-queue-type"] == "quorum" for q in queues.values())


def test_the_command_declares_and_says_so(
    bare_broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AMQP_URL", bare_broker.url)
    assert main(["topology", "declare"]) == 0
    assert main(["topology", "declare"]) == 0
    assert "celery.lab_operations.high" in capsys.readouterr().out
    assert bare_broker.is_empty()


def test_a_queue_with_other_arguments_is_reported_by_name(
    bare_broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bare_broker.channel().queue_declare(topology.QUEUE_NORMAL, durable=True)
    monkeypatch.setenv("AMQP_URL", bare_broker.url)
    assert main(["topology", "declare"]) == 1
    error = capsys.readouterr().err
    assert "PRECONDITION_FAILED" in error
    assert f"'{topology.QUEUE_NORMAL}'" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("routing_key", sorted(k for keys in topology.BINDINGS.values() for k in keys))
def test_a_routing_key_leads_to_one_queue(broker: Broker, routing_key: str) -> None:
    broker.channel().basic_publish(topology.TASKS_EXCHANGE, routing_key, b"x")
    assert broker.take(queue_for(routing_key)).routing_key == routing_key
    assert broker.is_empty()


def test_bindings_of_an_earlier_release_give_no_second_copy(broker: Broker) -> None:
    channel = broker.channel()
    for queue, routing_keys in topology.BINDINGS.items():
        for routing_key in routing_keys:
            channel.queue_bind(queue, topology.TASKS_EXCHANGE, routing_key)
    channel.basic_publish(topology.TASKS_EXCHANGE, "lab.create", b"now")
    channel.basic_publish(
        delay_ladder.ENTRY_EXCHANGE, delay_ladder.delayed_routing_key(1, "lab.create"), b"later"
    )
    assert broker.take(topology.QUEUE_NORMAL).body == b"now"
    assert broker.take(topology.QUEUE_NORMAL).body == b"later"
    assert broker.is_empty()


def test_a_message_that_kills_its_container_again_and_again_is_dead_lettered(broker: Broker) -> None:
    task_id = broker.publish_task(kwargs=create_kwargs())
    channel = broker.channel()
    for _ in range(topology.DELIVERY_LIMIT + 1):
        method = eventually(lambda: channel.basic_get(topology.QUEUE_NORMAL)[0], what="delivery")
        channel.basic_reject(method.delivery_tag, requeue=True)
    message = broker.take(topology.DEAD_LETTER_QUEUE)
    assert message.headers["id"] == task_id
    assert message.headers["x-death"][0]["reason"] == "delivery_limit"
    # Its lab learns of it by a copy.
    assert broker.take(topology.QUEUE_LOW).headers["id"] == task_id
    assert broker.is_empty()


def test_dead_letters_can_be_looked_at_any_number_of_times(broker: Broker) -> None:
    broker.channel().basic_publish(topology.DEAD_LETTER_EXCHANGE, "any", b"x")
    for _ in range(30):
        broker_channel = broker.channel()
        method, _, _ = broker_channel.basic_get(topology.DEAD_LETTER_QUEUE)
        if method is not None:
            broker_channel.basic_reject(method.delivery_tag, requeue=True)
        broker_channel.connection.close()
    assert broker.take(topology.DEAD_LETTER_QUEUE).body == b"x"
