"""Relays of a backend's threads: one at a time, and a broker that is away costs little."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from dispatcher import Dispatcher, NotConfirmed, PublishError
from dispatcher.broker.publisher import Publisher
from dispatcher.engine import make_engine
from dispatcher.message.envelope import TaskMessage
from dispatcher.outbox.relay import RelayReport, relay_once, waiting
from dispatcher.outbox.relay_turns import relay_after_commit
from dispatcher.settings import BrokerSettings
from dispatcher.testing import InMemoryDispatcher, InMemoryPublisher
from tests.support.broker.outbox import Arrivals, commit, creates, first_arrivals
from tests.support.broker.rabbitmq import Broker
from tests.support.broker.tcp_proxy import TcpProxy
from tests.support.database.postgres import Database
from tests.support.waiting import HANG_S, SOON_S, ends_within, eventually

ELSEWHERE, AWAY = RelayReport(elsewhere=True), RelayReport(broker_away=True)


class SlowPublisher(InMemoryPublisher):
    """A broker that confirms when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.may_confirm = threading.Event()

    def publish_tasks(
        self, messages: Sequence[TaskMessage], *, timeout_s: float | None = None
    ) -> list[PublishError | None]:
        self.asked.set()
        assert self.may_confirm.wait(2 * HANG_S)
        return super().publish_tasks(messages, timeout_s=timeout_s)


@pytest.fixture
def backend(database: Database) -> Iterator[Engine]:
    """An engine as a backend makes it: SQLAlchemy's own pool of 5 and 10 more."""
    engine = create_engine(make_url(database.url).set(drivername="postgresql+psycopg2"))
    yield engine
    engine.dispose()


@pytest.fixture
def distant(proxy: TcpProxy, broker: Broker) -> Iterator[Publisher]:
    """A publisher that reaches the broker through the proxy."""
    publisher = Publisher(BrokerSettings(proxy.through(broker.url)))
    yield publisher
    publisher.close()


#: Seconds that a request may wait for the broker.
ALLOWED_S = 2.0
#: Seconds that nothing has to wait for.
LONG_S = 10 * HANG_S


def test_a_broker_that_is_silent_does_not_take_the_reads_with_it(
    backend: Engine, proxy: TcpProxy, broker: Broker, database: Database
) -> None:
    proxy.freeze()
    dispatcher = Dispatcher(proxy.through(broker.url), database=backend)
    # Longer than it takes to find the broker silent: most requests do not wait for that, nor after it.
    end = time.monotonic() + 2 * ALLOWED_S
    posts: list[float] = []
    reads: list[float] = []

    def post(client: int) -> None:
        lab = client * 10_000
        while time.monotonic() < end:
            lab, began = lab + 1, time.monotonic()
            commit(backend, *creates([lab]))
            dispatcher.relay_outbox(timeout=ALLOWED_S)
            posts.append(time.monotonic() - began)
            time.sleep(0.1)  # a client's own pace

    def read() -> None:
        while time.monotonic() < end:
            began = time.monotonic()
            with backend.connect() as connection:
                connection.execute(text("SELECT 1"))
            reads.append(time.monotonic() - began)
            time.sleep(0.05)

    with ThreadPoolExecutor(32) as clients:
        done = [clients.submit(post, client) for client in range(30)] + [clients.submit(read)]
        for future in done:
            future.result()
    dispatcher.close()
    posts.sort()
    print(f"reads: {len(reads)}, at worst {max(reads):.2f} s")
    print(f"posts: {len(posts)}, median {posts[len(posts) // 2]:.2f} s, at worst {posts[-1]:.2f} s")
    assert max(reads) < ALLOWED_S
    assert posts[len(posts) // 2] < ALLOWED_S / 2
    assert posts[-1] < SOON_S
    assert database.rows("SELECT count(*) AS n FROM task_outbox") == [{"n": len(posts)}]


def test_no_task_is_left_when_all_calls_have_returned(
    backend: Engine, broker: Broker, arrivals: Arrivals
) -> None:
    dispatcher = Dispatcher(broker.url, database=backend)
    ids: list[str] = []
    reports: list[RelayReport] = []

    def post(client: int) -> None:
        for _ in range(30):
            ids.extend(commit(backend, *creates([client])))
            reports.append(dispatcher.relay_outbox(timeout=HANG_S))

    for _ in range(3):  # the end of each round is where one could be forgotten
        with ThreadPoolExecutor(8) as clients:
            list(clients.map(post, range(1, 9)))
        assert waiting(backend) == []
    dispatcher.close()
    assert Counter(arrivals.ids()) == Counter(ids)
    assert Counter(id for report in reports for id in report.published) == Counter(ids)
    assert all(report.complete for report in reports)


def test_a_call_leaves_its_task_to_the_one_under_way(backend: Engine) -> None:
    publisher = SlowPublisher()
    with ThreadPoolExecutor(1) as other:
        mine = commit(backend, *creates([1]))
        first = other.submit(relay_after_commit, backend, publisher, timeout_s=LONG_S)
        assert publisher.asked.wait(HANG_S)
        yours = commit(backend, *creates([2]))
        with ends_within():
            assert relay_after_commit(backend, publisher, timeout_s=LONG_S) == ELSEWHERE
        publisher.may_confirm.set()
        assert first.result(HANG_S).published == (*mine, *yours)
    assert waiting(backend) == []


def test_a_call_whose_time_is_over_still_looks_for_others(backend: Engine) -> None:
    publisher = SlowPublisher()
    with ThreadPoolExecutor(1) as other:
        commit(backend, *creates([1]))
        first = other.submit(relay_after_commit, backend, publisher, timeout_s=1.5)
        assert publisher.asked.wait(HANG_S)
        began = time.monotonic()
        commit(backend, *creates([2]))
        assert relay_after_commit(backend, publisher, timeout_s=0.3) == ELSEWHERE
        eventually(lambda: time.monotonic() - began > 1.6, what="the end of its time")
        publisher.may_confirm.set()
        assert len(first.result(HANG_S).published) == 2


def test_the_next_in_line_takes_over_after_a_batch(
    backend: Engine, arrivals: Arrivals, broker: Broker
) -> None:
    commit(backend, *creates(range(1, 4), each=20))
    publisher = Publisher(broker.settings)
    with ThreadPoolExecutor(6) as threads:
        calls = [
            threads.submit(relay_after_commit, backend, publisher, timeout_s=HANG_S, batch=3)
            for _ in range(6)
        ]
        reports = [call.result() for call in calls]
    publisher.close()
    assert waiting(backend) == []
    assert sum(len(report.published) for report in reports) == 60
    assert first_arrivals(arrivals.take()) == {lab: [*range(1, 21)] for lab in range(1, 4)}


def test_after_an_outage_was_found_calls_return_at_once(
    backend: Engine, proxy: TcpProxy, distant: Publisher, publisher: Publisher, database: Database,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    proxy.freeze()
    commit(backend, *creates([1]))
    found = relay_after_commit(backend, distant, timeout_s=0.5)
    assert found.broker_away
    assert found.failed
    assert not found.complete
    assert "confirmed nothing" in caplog.text
    ids = commit(backend, *creates([2]))
    with ends_within():
        report = relay_after_commit(backend, distant, timeout_s=LONG_S)
    assert report == AWAY
    assert not report.complete
    # Neither the commands and the sweep, nor who has another broker, need to wait.
    assert relay_once(backend, publisher).published == (ids[0],)
    ids = commit(backend, *creates([3]))
    assert relay_after_commit(backend, publisher, timeout_s=5).published == (ids[0],)
    proxy.thaw()
    database.rows("UPDATE task_outbox SET next_attempt_at = now()")
    eventually(lambda: relay_after_commit(backend, distant, timeout_s=5) != AWAY)
    assert waiting(backend) == []


def test_whatever_ends_a_call_does_not_end_the_next(backend: Engine, publisher: Publisher) -> None:
    class TimeLimit(BaseException):
        """As a web server raises it in the middle of a request."""

    class Interrupted(InMemoryPublisher):
        def publish_tasks(
            self, messages: Sequence[TaskMessage], *, timeout_s: float | None = None
        ) -> list[PublishError | None]:
            raise TimeLimit

    ids = commit(backend, *creates([1]))
    with pytest.raises(TimeLimit):
        relay_after_commit(backend, Interrupted(), timeout_s=5)
    assert relay_after_commit(backend, publisher, timeout_s=5).published == tuple(ids)


def test_a_database_that_is_away_is_reported_each_time(publisher: Publisher) -> None:
    nowhere = make_engine("postgresql://user@127.0.0.1:1/db", application_name="test")
    for _ in range(2):
        report = relay_after_commit(nowhere, publisher, timeout_s=1)
        assert "refused" in str(report.database_error)
        assert not report.complete


def test_engines_do_not_wait_for_each_other(engine: Engine, backend: Engine, publisher: Publisher) -> None:
    slow = SlowPublisher()
    commit(backend, *creates([1]))
    with ThreadPoolExecutor(1) as other:
        first = other.submit(relay_after_commit, backend, slow, timeout_s=HANG_S)
        assert slow.asked.wait(HANG_S)
        ids = commit(backend, *creates([2]))
        assert relay_after_commit(engine, publisher, timeout_s=HANG_S).published == tuple(ids)
        slow.may_confirm.set()
        assert first.result(HANG_S).complete


def test_a_child_forked_during_a_relay_does_its_own(database: Database, broker: Broker) -> None:
    engine = make_engine(database.url, application_name="test-parent", pool_size=2)
    slow = SlowPublisher()
    commit(engine, *creates([1]))
    with ThreadPoolExecutor(1) as other:
        first = other.submit(relay_after_commit, engine, slow, timeout_s=HANG_S)
        assert slow.asked.wait(HANG_S)
        commit(engine, *creates([2]))
        child = os.fork()
        if child == 0:  # the child must not run any of pytest's clean-up
            try:
                report = relay_after_commit(engine, Publisher(broker.settings), timeout_s=HANG_S)
                os._exit(0 if len(report.published) == 1 else 2)
            except BaseException:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        slow.may_confirm.set()
        assert len(first.result(HANG_S).published) == 1
    assert waiting(engine) == []
    engine.dispose()


def test_in_memory_the_next_call_tries_at_once(backend: Engine, database: Database) -> None:
    dispatcher = InMemoryDispatcher(database=backend)
    ids = commit(backend, *creates([1]))
    dispatcher.publisher.fail_with = NotConfirmed
    report = dispatcher.relay_outbox()
    assert (list(report.failed), report.broker_away, report.complete) == (ids, True, False)
    dispatcher.publisher.fail_with = None
    database.rows("UPDATE task_outbox SET next_attempt_at = now()")
    assert list(dispatcher.relay_outbox().published) == ids
