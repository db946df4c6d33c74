"""relay_forever on the real servers: woken by commits, by backoffs, and after what it lost is back."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine

from dispatcher.broker import topology
from dispatcher.broker.publisher import Publisher
from dispatcher.outbox.listener import relay_forever
from dispatcher.settings import BrokerSettings
from tests.support.broker.outbox import Arrivals, commit, creates, first_arrivals
from tests.support.broker.rabbitmq import Broker
from tests.support.broker.tcp_proxy import TcpProxy
from tests.support.database.postgres import Database
from tests.support.waiting import HANG_S, eventually

#: Seconds; longer than any test, so that what arrives was not found by a look that nothing asked for.
NO_POLL_S = 600.0
LISTENS = "application_name = 'autolabs-outbox' AND query LIKE 'LISTEN%%'"


@contextmanager
def relaying(url: str, publisher: Publisher, *, poll_s: float = NO_POLL_S) -> Iterator[threading.Thread]:
    """A relay in a thread; it must end soon after it is told to."""
    stop = threading.Event()
    relay = threading.Thread(
        target=relay_forever,
        args=(url, publisher, stop),
        kwargs={"poll_s": poll_s, "publish_timeout_s": 2},
        daemon=True,
    )
    relay.start()
    try:
        yield relay
    finally:
        stop.set()
        relay.join(HANG_S)
        assert not relay.is_alive()


@pytest.fixture
def relay(database: Database, publisher: Publisher) -> Iterator[threading.Thread]:
    with relaying(database.url, publisher) as relay:
        eventually(lambda: database.sessions(LISTENS), what="a relay that listens")
        yield relay


def wait_until_empty(database: Database) -> None:
    eventually(lambda: not database.rows("SELECT 1 FROM task_outbox"), what="an empty outbox")


@pytest.mark.usefixtures("relay")
def test_a_commit_wakes_the_relay(engine: Engine, arrivals: Arrivals) -> None:
    latencies = []
    for lab in range(1, 21):
        (task_id,) = commit(engine, *creates([lab]))
        committed = time.monotonic()
        while task_id not in arrivals.ids():
            assert time.monotonic() - committed < HANG_S
        latencies.append(time.monotonic() - committed)
    print(f"commit to arrival: median {statistics.median(latencies):.3f} s, most {max(latencies):.3f} s")
    assert statistics.median(latencies) < 1


def test_what_was_committed_before_is_published_first(
    engine: Engine, database: Database, publisher: Publisher, arrivals: Arrivals
) -> None:
    ids = commit(engine, *creates([1, 2], each=3))
    with relaying(database.url, publisher):
        wait_until_empty(database)
    assert sorted(arrivals.ids()) == sorted(ids)


@pytest.mark.usefixtures("relay")
def test_a_failed_row_is_tried_again_when_its_backoff_ends(
    engine: Engine, database: Database, broker: Broker
) -> None:
    broker.channel().queue_delete(topology.QUEUE_NORMAL)
    commit(engine, *creates([1]))
    eventually(lambda: database.rows("SELECT 1 FROM task_outbox WHERE failures > 0"), what="a failure")
    broker.declare()
    wait_until_empty(database)
    assert broker.depth(topology.QUEUE_NORMAL) == 1


@pytest.mark.usefixtures("relay")
def test_a_relay_whose_sessions_were_ended_connects_again(
    engine: Engine, database: Database, arrivals: Arrivals
) -> None:
    for lab in range(1, 4):
        assert database.terminate("autolabs-outbox") >= 1
        ids = commit(engine, *creates([lab], each=2))
        wait_until_empty(database)
        assert set(ids) <= set(arrivals.ids())
        eventually(lambda: database.sessions(LISTENS), what="a relay that listens again")


def test_a_database_that_is_away_is_waited_for(
    engine: Engine, database: Database, publisher: Publisher, arrivals: Arrivals
) -> None:
    with TcpProxy.to(database.url) as proxy:
        ids = commit(engine, *creates([1]))
        away = proxy.through(database.url)
    commit(engine, *creates([2]))
    with relaying(away, publisher) as relay:
        relay.join(1.5)
        assert relay.is_alive()
    assert arrivals.ids() == []
    with relaying(database.url, publisher):
        wait_until_empty(database)
    assert ids[0] in arrivals.ids()


def test_a_broker_that_is_away_is_waited_for(
    engine: Engine, database: Database, broker: Broker, arrivals: Arrivals
) -> None:
    with TcpProxy.to(broker.url) as proxy:
        publisher = Publisher(BrokerSettings(proxy.through(broker.url), publish_timeout_s=2))
        with relaying(database.url, publisher):
            proxy.freeze()
            ids = commit(engine, *creates([1, 2], each=3))
            eventually(
                lambda: database.rows("SELECT 1 FROM task_outbox WHERE failures > 0"), what="a failure"
            )
            proxy.thaw()
            wait_until_empty(database)
        publisher.close()
    assert set(arrivals.ids()) == set(ids)
    assert first_arrivals(arrivals.seen) == {1: [1, 2, 3], 2: [1, 2, 3]}


def test_without_notifications_the_poll_finds_what_is_due(
    engine: Engine, database: Database, publisher: Publisher
) -> None:
    database.rows("ALTER TABLE task_outbox DISABLE TRIGGER task_outbox_notify")
    with relaying(database.url, publisher, poll_s=1):
        eventually(lambda: database.sessions(LISTENS), what="a relay that listens")
        commit(engine, *creates([1]))
        wait_until_empty(database)


def test_several_relays_share_the_work(
    engine: Engine, database: Database, broker: Broker, arrivals: Arrivals
) -> None:
    publishers = [Publisher(broker.settings, name=f"test-relay-{number}") for number in range(3)]
    with (
        relaying(database.url, publishers[0]),
        relaying(database.url, publishers[1]),
        relaying(database.url, publishers[2]),
    ):
        ids = commit(engine, *creates(range(1, 6), each=40))
        wait_until_empty(database)
    for publisher in publishers:
        publisher.close()
    assert sorted(arrivals.ids()) == sorted(ids)
    assert first_arrivals(arrivals.seen) == {lab: [*range(1, 41)] for lab in range(1, 6)}
