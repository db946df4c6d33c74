"""What a test leaves in a vhost or a database that was lent to it does not reach the next one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pika
import psycopg2
import pytest

from dispatcher.broker import delay_ladder, topology
from dispatcher.migrations.migrate import VERSION_TABLE
from tests.support.broker.rabbitmq import QUEUES, Broker
from tests.support.broker.vhost_pool import RESTING, VhostPool
from tests.support.database.database_pool import DatabasePool
from tests.support.database.postgres import Server
from tests.support.lending import lent_database, lent_vhost


@pytest.fixture
def vhosts() -> Iterator[VhostPool]:
    """A pool whose vhosts no other test sees."""
    pool = VhostPool(os.environ["AMQP_URL"], os.environ["RABBITMQ_API_URL"], patience_s=1)
    yield pool
    pool.close()


@pytest.fixture
def databases(database_server: Server, migrated_template: str) -> Iterator[DatabasePool]:
    pool = DatabasePool(database_server, migrated_template, patience_s=1)
    yield pool
    pool.close()


def lend_again(pool: VhostPool, vhost: str) -> Broker:
    """Return the same vhost as it is lent the next time."""
    others = [pool.lend() for _ in range(RESTING)]
    for other in others:
        pool.take_back(other)
    again = pool.lend()
    assert again.vhost == vhost
    return again


def test_messages_do_not_reach_the_next_test(vhosts: VhostPool) -> None:
    broker = vhosts.lend()
    for queue in (topology.QUEUE_NORMAL, topology.DEAD_LETTER_QUEUE, delay_ladder.level_name(0)):
        broker.publish(queue, b"{}")
    held = broker.channel()
    broker.publish_task()
    assert held.basic_get(topology.QUEUE_NORMAL)[0] is not None
    assert vhosts.take_back(broker) == ([], [])
    again = lend_again(vhosts, broker.vhost)
    assert again.look(QUEUES) == [(0, 0)] * len(QUEUES)
    vhosts.take_back(again)


def test_a_topology_that_a_test_changed_is_mended(vhosts: VhostPool) -> None:
    broker = vhosts.lend()
    channel = broker.channel()
    channel.queue_delete(topology.QUEUE_HIGH)
    channel.queue_unbind(topology.QUEUE_LOW, topology.TASKS_EXCHANGE, topology.binding_key("lab.sync"))
    channel.queue_declare("left", durable=True)
    channel.exchange_delete(topology.EVENTS_EXCHANGE)
    channel.exchange_declare(topology.EVENTS_EXCHANGE, "fanout", durable=True)
    policy = {"pattern": ".*", "definition": {"max-length": 1}}
    broker.api.call("PUT", f"/policies/{broker.vhost}/left", policy)
    left, changed = vhosts.take_back(broker)
    assert left == []
    assert {"queues celery.lab_operations.high is gone", "queues left was left"} <= set(changed)
    assert {"exchanges autolabs.events was changed", "policies left was left"} <= set(changed)
    again = lend_again(vhosts, broker.vhost)
    assert vhosts.take_back(again) == ([], [])
    assert vhosts.thrown_away == 0


def test_a_topology_that_cannot_be_mended_is_thrown_away(vhosts: VhostPool) -> None:
    broker = vhosts.lend()
    broker.channel().queue_bind(topology.QUEUE_LOW, topology.TASKS_EXCHANGE, "#.lab.create")
    _, changed = vhosts.take_back(broker)
    assert changed == ["bindings autolabs.tasks -> celery.cleanup #.lab.create was left"]
    assert vhosts.thrown_away == 1
    others = [vhosts.lend() for _ in range(RESTING + 1)]
    assert broker.vhost not in [other.vhost for other in others]
    for other in others:
        vhosts.take_back(other)


def test_an_open_connection_and_a_user_are_the_error_of_who_left_them(
    vhosts: VhostPool, request: pytest.FixtureRequest
) -> None:
    opened: list[pika.BlockingConnection] = []

    def borrow() -> None:
        with lent_vhost(vhosts, request.node) as broker:
            opened.append(pika.BlockingConnection(pika.URLParameters(broker.url)))
            opened[0].channel().basic_consume(topology.QUEUE_NORMAL, lambda *_: None)
            broker.api.call("PUT", f"/users/{broker.vhost}-left", {"password": "secret", "tags": ""})

    left = r"left behind: connection \S+ -> \S+:5672; user test-\w+-left"
    with pytest.raises(AssertionError, match=left) as error:
        borrow()
    assert request.node.nodeid in str(error.value)
    assert vhosts.thrown_away == 1
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        opened[0].channel()


def test_a_vhost_comes_back_when_what_was_lent_beside_it_was_left_open(
    vhosts: VhostPool, databases: DatabasePool, request: pytest.FixtureRequest
) -> None:
    borrowed: list[Broker] = []
    opened = []

    def borrow() -> None:
        with lent_vhost(vhosts, request.node) as broker, lent_database(databases, request.node) as database:
            borrowed.append(broker)
            opened.append(psycopg2.connect(database.url))

    with pytest.raises(AssertionError, match="left behind: session"):
        borrow()
    vhosts.take_back(lend_again(vhosts, borrowed[0].vhost))


def test_rows_do_not_reach_the_next_test(databases: DatabasePool) -> None:
    database = databases.lend()
    first = database.add_lab()
    assert databases.take_back(database) == ([], [])
    again = databases.lend()
    assert again.name == database.name
    assert again.rows("SELECT id FROM lab_instances") == []
    assert again.add_lab() == first
    databases.take_back(again)


@pytest.mark.parametrize(
    "change",
    [
        "DROP TABLE notifications",
        "ALTER TABLE lab_instances ADD CHECK (id <> 7)",
        "ALTER TABLE lab_instances DROP COLUMN restart_of",
        "CREATE TABLE other (id int)",
        "CREATE SCHEMA far",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER DATABASE {name} SET default_transaction_read_only = on",
        "ALTER TABLE lab_instances ALTER COLUMN lab_id SET DEFAULT 1",
        f"UPDATE {VERSION_TABLE} SET version_num = '9999'",
        f"DROP TABLE {VERSION_TABLE}",
    ],
)
def test_a_database_that_a_test_changed_is_thrown_away(databases: DatabasePool, change: str) -> None:
    database = databases.lend()
    database.rows(change.format(name=database.name))
    left, changed = databases.take_back(database)
    assert left == []
    assert changed
    assert databases.thrown_away == 1
    again = databases.lend()
    assert again.name != database.name
    assert databases.take_back(again) == ([], [])


def test_an_open_session_and_its_lock_are_the_error_of_who_left_them(
    databases: DatabasePool, request: pytest.FixtureRequest
) -> None:
    opened = []

    def borrow() -> str:
        with lent_database(databases, request.node) as database:
            opened.append(psycopg2.connect(database.url, application_name="forgotten"))
            opened[0].cursor().execute("SELECT pg_advisory_lock(1)")
            return database.name

    left = "left behind: session forgotten idle in transaction SELECT pg_advisory_lock"
    with pytest.raises(AssertionError, match=left) as error:
        borrow()
    assert request.node.nodeid in str(error.value)
    again = databases.lend()
    assert again.rows("SELECT pg_try_advisory_lock(1) AS free") == [{"free": True}]
    assert databases.take_back(again) == ([], [])
    with pytest.raises(psycopg2.Error):
        opened[0].cursor().execute("SELECT")
