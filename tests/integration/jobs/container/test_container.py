"""The container's life: claim one message, settle it, exit; here with tasks that need no cluster."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from dispatcher import BrokerSettings
from dispatcher.broker import topology
from dispatcher.broker.connection import connect
from dispatcher.tasks import CLEANUP_TIMEOUT_LABS
from jobs.container import consumer
from tests.support.broker.rabbitmq import Broker
from tests.support.broker.tcp_proxy import TcpProxy
from tests.support.containers.container import Containers
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs
from tests.support.waiting import HANG_S, ends_within, eventually, eventually_equal


@pytest.fixture
def slow_database(database: Database) -> Iterator[TcpProxy]:
    """A database that answers nothing, so that a task is under way for as long as a test needs."""
    with TcpProxy.to(database.url) as proxy:
        proxy.freeze()
        yield proxy


def publish_cleanup(broker: Broker) -> str:
    return broker.publish_task(name=CLEANUP_TIMEOUT_LABS, kwargs={})


def test_an_empty_queue_is_success(containers: Containers, broker: Broker) -> None:
    code, container = containers.run(CLAIM_WAIT_S=0.5)
    assert code == 0
    assert container.actions()[-1] == "idle"
    assert all("task_id" in line for line in container.lines())


def test_a_cleanup_is_run_recorded_and_acknowledged(
    containers: Containers, broker: Broker, database: Database
) -> None:
    lab = database.add_lab(status="RUNNING", k8s_pod_name="pod")
    database.expire(lab)
    task_id = publish_cleanup(broker)
    code, container = containers.run(queue=topology.QUEUE_LOW, JOB_NAME="job-1")
    assert code == 0
    assert broker.is_empty(topology.QUEUE_LOW, topology.DEAD_LETTER_QUEUE)
    assert broker.depth(topology.QUEUE_HIGH) == 1
    (run,) = database.ledger()
    assert (run["task_id"], run["outcome"], run["attempt"], run["job_name"]) == (
        task_id,
        "succeeded",
        1,
        "job-1",
    )
    assert run["details"]["result"]["deletes_published"] == 1
    assert run["published_at"] <= run["finished_at"]
    tasks_named = {line["task_id"] for line in container.lines() if line["action"] in ("claimed", "done")}
    assert tasks_named == {task_id}


def test_exactly_one_message_is_taken(containers: Containers, broker: Broker, database: Database) -> None:
    first, second = publish_cleanup(broker), publish_cleanup(broker)
    code, _ = containers.run_here(queue=topology.QUEUE_LOW)
    assert code == 0
    eventually_equal(lambda: broker.depth(topology.QUEUE_LOW), 1)
    left = broker.take(topology.QUEUE_LOW)
    assert (left.headers["id"], left.redelivered) == (second, False)
    assert [run["task_id"] for run in database.ledger()] == [first]


def test_while_a_message_is_held_the_port_is_bound_and_the_next_message_stays(
    containers: Containers, broker: Broker, slow_database: TcpProxy, database: Database
) -> None:
    url = slow_database.through(database.url)
    container = containers.start(queue=topology.QUEUE_LOW, DATABASE_URL=url, CLAIM_WAIT_S=60)
    eventually(lambda: broker.consumers(topology.QUEUE_LOW))
    assert not container.is_ready()
    publish_cleanup(broker)
    container.wait_for_action("claimed")
    eventually(container.is_ready)
    publish_cleanup(broker)
    assert broker.depth(topology.QUEUE_LOW) == 1
    slow_database.thaw()
    assert container.wait() == 0
    assert broker.depth(topology.QUEUE_LOW) == 1
    assert database.outcomes() == ["succeeded"]


def test_sigterm_while_waiting_ends_a_spare(containers: Containers, broker: Broker) -> None:
    container = containers.start(queue=topology.QUEUE_LOW, CLAIM_WAIT_S=300)
    eventually(lambda: broker.consumers(topology.QUEUE_LOW))
    container.terminate()
    assert container.wait() == 0
    publish_cleanup(broker)
    assert broker.depth(topology.QUEUE_LOW) == 1


def test_sigterm_while_working_gives_the_message_back(
    containers: Containers, broker: Broker, slow_database: TcpProxy, database: Database
) -> None:
    task_id = publish_cleanup(broker)
    container = containers.start(queue=topology.QUEUE_LOW, DATABASE_URL=slow_database.through(database.url))
    container.wait_for_action("claimed")
    container.terminate()
    assert container.wait() == 143
    message = broker.take(topology.QUEUE_LOW)
    assert (message.headers["id"], message.redelivered) == (task_id, True)


def test_a_container_that_is_killed_leaves_its_message_to_the_next(
    containers: Containers, broker: Broker, slow_database: TcpProxy, database: Database
) -> None:
    task_id = publish_cleanup(broker)
    container = containers.start(queue=topology.QUEUE_LOW, DATABASE_URL=slow_database.through(database.url))
    container.wait_for_action("claimed")
    container.end()
    code, _ = containers.run_here(queue=topology.QUEUE_LOW)
    assert code == 0
    (run,) = database.ledger()
    assert (run["task_id"], run["redelivered"], run["outcome"]) == (task_id, True, "succeeded")


def test_a_broker_connection_lost_while_working_does_not_lose_the_task(
    containers: Containers, broker: Broker, slow_database: TcpProxy, database: Database
) -> None:
    publish_cleanup(broker)
    with TcpProxy.to(broker.url) as cable:
        container = containers.start(
            queue=topology.QUEUE_LOW,
            AMQP_URL=cable.through(broker.url),
            DATABASE_URL=slow_database.through(database.url),
        )
        container.wait_for_action("claimed")
        cable.cut()
        slow_database.thaw()
        assert container.wait() == 0
    assert "channel_lost" in container.actions()
    assert database.outcomes() == ["succeeded"]
    code, _ = containers.run_here(queue=topology.QUEUE_LOW)
    assert code == 0
    assert database.outcomes() == ["succeeded", "succeeded"]
    assert broker.is_empty()


def test_a_missing_queue_is_a_broker_that_cannot_be_used(containers: Containers, broker: Broker) -> None:
    broker.channel().queue_delete(topology.QUEUE_NORMAL)
    code, _ = containers.run_here()
    assert code == 69


def test_wrong_settings_have_their_own_exit_code_and_are_listed(containers: Containers) -> None:
    code, container = containers.run_here(READY_PORT="http", LOG_LEVEL="LOUD", S3_ENDPOINT="")
    assert code == 78
    (line,) = container.lines()
    assert all(name in line["message"] for name in ("READY_PORT", "LOG_LEVEL", "S3_ENDPOINT"))


def test_a_readiness_port_in_use_gives_the_message_back(containers: Containers, broker: Broker) -> None:
    publish_cleanup(broker)
    with socket.create_server(("", 0)) as taken:
        code, container = containers.run_here(queue=topology.QUEUE_LOW, READY_PORT=taken.getsockname()[1])
    assert code == 75
    assert "Traceback" not in str([line for line in container.lines() if line["action"] == "not JSON"])
    assert broker.depth(topology.QUEUE_LOW) == 1


def test_a_create_is_served_from_any_queue(
    containers: Containers, broker: Broker, database: Database
) -> None:
    task_id = broker.publish_task(kwargs=create_kwargs())
    message = broker.take(topology.QUEUE_NORMAL)
    sent = message.properties
    broker.publish(
        topology.QUEUE_LOW, message.body, headers=message.headers, content_encoding=sent.content_encoding
    )
    code, _ = containers.run_here(queue=topology.QUEUE_LOW)
    assert code == 0
    assert [run["task_id"] for run in database.ledger()] == [task_id]


def test_a_settlement_that_is_not_answered_is_lost_in_good_time(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "SETTLE_TIMEOUT_S", 0.5)
    task_id = publish_cleanup(broker)
    with TcpProxy.to(broker.url) as cable:
        connection = connect(BrokerSettings(cable.through(broker.url)), name="test")
        taker = consumer.Consumer(connection, topology.QUEUE_LOW)
        delivery = taker.claim(wait_s=HANG_S, stop=threading.Event(), on_waiting=lambda: None)
        assert delivery is not None
        cable.freeze()
        with ends_within(), pytest.raises(consumer.ChannelLost):
            taker.acknowledge(delivery)
    assert broker.take(topology.QUEUE_LOW).headers["id"] == task_id


def test_a_database_that_refuses_the_ledger_sends_the_message_to_the_dead_letters(
    containers: Containers, broker: Broker, database: Database
) -> None:
    database.rows("DROP TABLE task_ledger")
    publish_cleanup(broker)
    code, container = containers.run_here(queue=topology.QUEUE_LOW)
    assert code == 0
    assert broker.is_empty(topology.QUEUE_LOW)
    dead = broker.take(topology.DEAD_LETTER_QUEUE)
    assert dead.headers["x-autolabs-category"] == "PERMANENT_PERMISSION_ERROR"
    assert "task_ledger" in dead.headers["x-autolabs-reason"]
    assert "ledger_missed" in container.actions()


def test_of_more_containers_than_spares_those_too_many_leave(containers: Containers, broker: Broker) -> None:
    def start() -> None:
        environ = {"CLAIM_WAIT_S": 300, "SPARES": 2, "TEST_TURNS": containers.folder / "turns"}
        containers.start(module="tests.support.containers.hasty_job", queue=topology.QUEUE_LOW, **environ)

    def left() -> list[int]:
        return [code for process in containers.started if (code := process.popen.poll()) is not None]

    # On a busy machine the first may leave before the last is there; in the end it is the same.
    for _ in range(4):
        start()
    eventually(lambda: len(left()) == 2, what="two of four have left")
    # Those that stayed look again meanwhile.
    start()
    eventually(lambda: len(left()) == 3, what="one of three has left")
    assert left() == [0, 0, 0]
    assert broker.consumers(topology.QUEUE_LOW) == 2


def test_a_spare_leaves_at_once_when_its_queue_is_deleted_and_declared_again(
    containers: Containers, broker: Broker
) -> None:
    spare = containers.start(CLAIM_WAIT_S=60)
    eventually_equal(lambda: broker.consumers(topology.QUEUE_NORMAL), 1)
    broker.channel().queue_delete(topology.QUEUE_NORMAL)
    broker.declare()
    assert spare.wait() == 0
    assert "consumer_cancelled" in spare.actions()


def test_a_container_with_wrong_settings_holds_until_it_is_stopped(containers: Containers) -> None:
    container = containers.start(S3_ENDPOINT="", FAULT_WAIT_S=60)
    container.wait_for_action("held")
    container.terminate()
    assert container.wait() == 78
