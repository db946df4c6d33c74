"""relay_once on the real servers: order, failures, a broker that is away, rows nobody checked."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine

from dispatcher import DeleteLabPod, outbox
from dispatcher.broker import topology
from dispatcher.broker.publisher import Publisher
from dispatcher.engine import make_engine
from dispatcher.message.request import TaskRequest
from dispatcher.outbox.relay import RelayReport, relay_once, waiting
from dispatcher.settings import BrokerSettings
from tests.support.broker.outbox import Arrivals, commit, creates, first_arrivals
from tests.support.broker.rabbitmq import Broker
from tests.support.broker.tcp_proxy import TcpProxy
from tests.support.containers.container import Containers
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_payload, make_task
from tests.support.waiting import HANG_S, ends_within, eventually

#: The name of the session of `relaying`.
DISTANT = "test-distant-relay"


@pytest.fixture
def distant_publisher(proxy: TcpProxy, broker: Broker) -> Iterator[Publisher]:
    """A publisher that reaches the broker through the proxy."""
    publisher = Publisher(BrokerSettings(proxy.through(broker.url), publish_timeout_s=HANG_S))
    yield publisher
    publisher.close()


@pytest.fixture
def relaying(
    database: Database, proxy: TcpProxy, distant_publisher: Publisher
) -> Iterator[Callable[[], Future[RelayReport]]]:
    """Start a relay through the proxy, with a session of its own; afterwards it is over."""
    engine = make_engine(database.url, application_name=DISTANT)

    def relay() -> RelayReport:
        return relay_once(engine, distant_publisher, timeout_s=HANG_S, publish_timeout_s=HANG_S)

    with ThreadPoolExecutor() as pool:
        yield lambda: pool.submit(relay)
        proxy.thaw()
    engine.dispose()


def rows(database: Database) -> list[dict[str, Any]]:
    due_s = "extract(epoch FROM next_attempt_at - now()) AS due_s"
    return database.rows(f"SELECT task_id, failures, last_error, {due_s} FROM task_outbox ORDER BY id")


def add_sql(database: Database, *values: str) -> None:
    for value in values:
        database.rows(f"INSERT INTO task_outbox (task_name, kwargs) VALUES ({value})")


def make_due(database: Database) -> None:
    database.rows("UPDATE task_outbox SET next_attempt_at = now()")


def test_committed_tasks_arrive_and_leave_the_outbox(
    engine: Engine, publisher: Publisher, database: Database, arrivals: Arrivals
) -> None:
    ids = commit(engine, *creates([1, 2]), DeleteLabPod(lab_instance_id=1), *creates([3]))
    report = relay_once(engine, publisher)
    # The delete waits for the create of its lab, so it is in the second batch.
    assert arrivals.ids() == [ids[0], ids[1], ids[3], ids[2]]
    assert sorted(report.published) == sorted(ids)
    assert report.complete
    assert rows(database) == []
    assert arrivals.seen[0].kwargs == {
        **create_kwargs(lab_instance_id=1, student_id=1),
        "resources": {},
        "network_isolated": True,
    }


def test_an_empty_outbox_needs_no_broker(
    engine: Engine, proxy: TcpProxy, distant_publisher: Publisher
) -> None:
    report = relay_once(engine, distant_publisher)
    assert (report.published, report.failed, report.complete) == ((), {}, True)
    assert proxy.accepted == 0


def test_what_is_not_committed_is_not_seen(
    engine: Engine, publisher: Publisher, database: Database, arrivals: Arrivals
) -> None:
    backend = make_engine(database.url, application_name="test-slow-backend")
    with backend.connect() as connection:
        task_id = outbox.add(connection, make_payload(lab_instance_id=1))
        committed = commit(engine, *creates([1]))
        assert list(relay_once(engine, publisher).published) == committed
        connection.rollback()
    backend.dispose()
    assert relay_once(engine, publisher).published == ()
    assert task_id not in arrivals.ids()


def test_a_long_backlog_of_few_labs_keeps_its_order(
    engine: Engine, publisher: Publisher, arrivals: Arrivals
) -> None:
    commit(engine, *creates(range(1, 6), each=20))
    assert len(relay_once(engine, publisher, batch=3).published) == 100
    assert first_arrivals(arrivals.take()) == {lab: [*range(1, 21)] for lab in range(1, 6)}


@pytest.mark.parametrize("relays", [2, 4])
def test_relays_at_once_publish_each_row_once_and_in_order(
    engine: Engine, broker: Broker, database: Database, arrivals: Arrivals, relays: int
) -> None:
    ids = commit(engine, *creates(range(1, 7), each=60))
    shares: list[int] = []
    begin = threading.Barrier(relays)

    def relay() -> None:
        publisher = Publisher(broker.settings, name="test-relay")
        own = make_engine(database.url, application_name="test-relay")
        published = 0
        begin.wait(HANG_S)
        # A call ends early when another relay holds the oldest row of every lab.
        while waiting(own, limit=1):
            published += len(relay_once(own, publisher, batch=2).published)
        shares.append(published)
        own.dispose()
        publisher.close()

    threads = [threading.Thread(target=relay) for _ in range(relays)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * HANG_S)
    print(f"{relays} relays published {shares}")
    assert sum(shares) == len(ids) == 360
    assert Counter(arrivals.ids()) == Counter(ids)
    assert first_arrivals(arrivals.seen) == {lab: [*range(1, 61)] for lab in range(1, 7)}
    assert min(shares) > 0


def test_an_unroutable_task_blocks_its_lab_alone(
    engine: Engine, broker: Broker, publisher: Publisher, database: Database
) -> None:
    broker.channel().queue_delete(topology.QUEUE_HIGH)
    delete, create_after, other = commit(
        engine, DeleteLabPod(lab_instance_id=1), make_payload(lab_instance_id=1), *creates([2])
    )
    report = relay_once(engine, publisher)
    assert report.published == (other,)
    assert list(report.failed) == [delete]
    assert "no queue is bound" in report.failed[delete]
    assert not report.complete
    failed, blocked = rows(database)
    assert (failed["task_id"], failed["failures"], failed["last_error"]) == (delete, 1, report.failed[delete])
    assert 0 < failed["due_s"] <= 1
    assert (blocked["task_id"], blocked["failures"], blocked["last_error"]) == (create_after, 0, None)
    broker.declare()
    make_due(database)
    assert relay_once(engine, publisher).published == (delete, create_after)


def test_the_backoff_doubles_up_to_a_minute(
    engine: Engine, broker: Broker, publisher: Publisher, database: Database
) -> None:
    broker.channel().queue_delete(topology.QUEUE_NORMAL)
    commit(engine, *creates([1]))
    delays = []
    for _ in range(8):
        relay_once(engine, publisher)
        delays.append(float(rows(database)[0]["due_s"]))
        assert relay_once(engine, publisher).failed == {}, "not due yet"
        make_due(database)
    assert delays == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60], abs=0.9)
    assert rows(database)[0]["failures"] == 8


@pytest.mark.parametrize("connected", [True, False], ids=["connected before", "not connected"])
def test_a_broker_that_is_away_leaves_the_tasks_for_later(
    engine: Engine,
    database: Database,
    proxy: TcpProxy,
    distant_publisher: Publisher,
    arrivals: Arrivals,
    caplog: pytest.LogCaptureFixture,
    connected: bool,
) -> None:
    if connected:
        commit(engine, *creates([9]))
        relay_once(engine, distant_publisher)
        arrivals.take()
    proxy.freeze()
    ids = commit(engine, *creates([1, 2, 3], each=2))
    with ends_within():
        report = relay_once(engine, distant_publisher, timeout_s=1, batch=2)
    assert report.published == ()
    assert list(report.failed) == ids[:2]
    assert "not confirmed" in report.failed[ids[0]]
    assert [row["failures"] for row in rows(database)] == [1, 1, 0, 0, 0, 0]
    assert all(row["due_s"] > 0 and row["last_error"] for row in rows(database)[:2])
    assert "failed 2" in caplog.text
    proxy.thaw()

    def drained() -> bool:
        relay_once(engine, distant_publisher)
        return not rows(database)

    eventually(drained, what="an empty outbox")
    assert set(ids) <= set(arrivals.ids())
    tasks = [task for task in arrivals.seen if task.id in ids]
    assert first_arrivals(tasks) == {1: [1, 2], 2: [1, 2], 3: [1, 2]}


def test_a_process_that_is_busy_publishing_does_not_put_tasks_off(
    engine: Engine, database: Database, proxy: TcpProxy, distant_publisher: Publisher, arrivals: Arrivals
) -> None:
    ids = commit(engine, *creates([1, 2]))
    proxy.freeze()
    busy = threading.Thread(target=lambda: distant_publisher.publish_tasks([make_task()], timeout_s=5))
    busy.start()
    eventually(lambda: proxy.accepted, what="another thread that publishes")
    report = relay_once(engine, distant_publisher, timeout_s=0.5)
    assert list(report.failed) == ids
    assert "other threads are publishing" in report.failed[ids[0]]
    assert not report.complete
    assert not report.broker_away
    assert [(row["failures"], row["last_error"], row["due_s"] <= 0) for row in rows(database)] == [
        (0, None, True)
    ] * 2
    proxy.thaw()
    busy.join(HANG_S)
    assert list(relay_once(engine, distant_publisher).published) == ids


def test_failed_tasks_are_put_off_by_one_statement(
    engine: Engine, broker: Broker, publisher: Publisher, database: Database
) -> None:
    broker.channel().queue_delete(topology.QUEUE_NORMAL)
    ids = commit(engine, *creates(range(1, 21)))
    assert sorted(relay_once(engine, publisher).failed) == sorted(ids)
    # cmin numbers the statements of a transaction.
    statements = database.rows("SELECT DISTINCT cmin::text, xmin::text FROM task_outbox")
    assert len(statements) == 1
    assert all(row["task_id"] in row["last_error"] for row in rows(database))


def test_a_database_that_is_away_is_reported_and_not_raised(
    publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = make_engine("postgresql://user:hidden@127.0.0.1:1/db", application_name="test")
    report = relay_once(nowhere, publisher)
    assert report.published == ()
    assert not report.complete
    assert "refused" in str(report.database_error)
    assert "hidden" not in caplog.text + str(report)


HUGE_NUMBER = """'{"lab_instance_id": 2, "lab_id": 1' || repeat('0', 5000) || '}'"""
DEEP = """'{"lab_instance_id": 3, "a": ' || repeat('[', 3000) || repeat(']', 3000) || '}'"""


def test_rows_that_cannot_be_a_message_block_their_lab_alone(
    engine: Engine, publisher: Publisher, database: Database, arrivals: Arrivals
) -> None:
    add_sql(database, f"'t', ({HUGE_NUMBER})::jsonb", f"'t', ({DEEP})::jsonb")
    ids = commit(engine, *creates([1, 2, 3, 4]))
    report = relay_once(engine, publisher)
    assert list(report.published) == arrivals.ids() == [ids[0], ids[3]]
    assert len(report.failed) == 2
    huge, deep = rows(database)[:2]
    assert "4300 digits" in huge["last_error"]
    assert "recursion" in deep["last_error"]
    assert huge["failures"] == deep["failures"] == 1


ODD = {
    "an unknown name": """'lab.nobody.knows', '{}'""",
    "a control character": """E'line\nbreak', '{}'""",
    "an unknown argument": """'celery_workers.create_lab_pod', '{"colour": "red"}'""",
    "a nested name": """'celery_workers.delete_lab_pod', '{"lab_instance_id": 1, "force": [["yes"]]}'""",
    "half a megabyte": """'t', jsonb_build_object('a', repeat('é', 300000))""",
    "a number that is no float": """'t', '{"a": 1e-5000, "b": 1.5e300}'""",
}


@pytest.mark.parametrize("values", ODD.values(), ids=ODD)
def test_rows_that_no_validation_has_seen_are_published(
    engine: Engine, publisher: Publisher, broker: Broker, database: Database, values: str
) -> None:
    add_sql(database, values)
    report = relay_once(engine, publisher)
    assert report.failed == {}
    assert rows(database) == []
    queue = topology.QUEUE_HIGH if "delete" in values else topology.QUEUE_NORMAL
    message = broker.take(queue)
    (name,) = database.rows(f"SELECT column1 AS name FROM (VALUES ({values})) AS v")
    assert message.headers["task"] == name["name"]
    assert message.properties.correlation_id == report.published[0]


def test_a_task_of_an_unknown_name_ends_in_the_dead_letter_queue(
    engine: Engine, publisher: Publisher, broker: Broker, database: Database, containers: Containers
) -> None:
    add_sql(database, """'celery_workers.nope', '{"lab_instance_id": 1}'""")
    (task_id,) = relay_once(engine, publisher).published
    assert containers.run_here()[0] == 0
    dead = broker.take(topology.DEAD_LETTER_QUEUE)
    assert dead.headers["id"] == task_id
    assert "celery_workers.nope" in json.dumps(dead.headers)


def test_times_travel_along(engine: Engine, publisher: Publisher, broker: Broker) -> None:
    request = TaskRequest(make_payload(), expires=3600)
    (task_id,) = commit(engine, request)
    relay_once(engine, publisher)
    message = broker.take(topology.QUEUE_NORMAL)
    assert message.headers["id"] == task_id
    assert message.headers["expires"] is not None


def test_a_task_with_a_countdown_arrives_after_it(
    engine: Engine, publisher: Publisher, broker: Broker
) -> None:
    commit(engine, TaskRequest(make_payload(), countdown=3))
    added = time.monotonic()
    assert relay_once(engine, publisher).complete
    assert broker.is_empty()
    broker.take(topology.QUEUE_NORMAL, timeout_s=HANG_S)
    assert time.monotonic() - added > 1.5


def test_a_relay_that_lost_its_session_leaves_its_rows_to_others(
    engine: Engine,
    database: Database,
    publisher: Publisher,
    proxy: TcpProxy,
    relaying: Callable[[], Future[RelayReport]],
    arrivals: Arrivals,
) -> None:
    ids = commit(engine, *creates([1, 2], each=2))
    proxy.freeze()
    relay = relaying()
    # Only then it has locked its rows: a session is in a transaction before that as well.
    eventually(lambda: proxy.accepted, what="a relay that publishes")
    assert relay_once(engine, publisher).published == (), "the relay holds both heads"
    assert database.terminate(DISTANT) == 1

    def all_published() -> bool:
        relay_once(engine, publisher)
        return not rows(database)

    eventually(all_published, what="all published")
    proxy.thaw()
    assert relay.result(HANG_S).database_error is not None
    assert set(arrivals.ids()) == set(ids)
    assert first_arrivals(arrivals.seen) == {1: [1, 2], 2: [1, 2]}
