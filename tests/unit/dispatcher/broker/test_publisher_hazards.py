"""What needs no broker: addresses that do not answer, URLs that nobody can read, signals at bad moments."""

from __future__ import annotations

import random
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from dispatcher import InvalidSettings, NotConfirmed, NotSent
from dispatcher.broker.publisher import Publisher
from dispatcher.settings import BrokerSettings
from tests.support.factories import make_task
from tests.support.waiting import HANG_S, ends_within


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port whose connections are never made: its backlog is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port
        for filler in fillers:
            filler.close()


def test_a_host_with_many_silent_addresses_takes_no_longer_than_the_timeout(
    silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo
    asked: list[object] = []

    def twenty_times(host: str, *arguments: object, **options: object) -> list[object]:
        asked.append(host)
        return [*resolve("127.0.0.1", silent_port, type=socket.SOCK_STREAM)] * 20

    monkeypatch.setattr(socket, "getaddrinfo", twenty_times)
    with ends_within(), pytest.raises(NotConfirmed, match="cannot connect: timed out"):
        Publisher(BrokerSettings("amqp://rabbitmq/")).publish_task(make_task(), timeout_s=1.5)
    assert asked


@pytest.mark.parametrize(
    "query",
    [
        "?heartbeat=abc",
        "?ssl_options=%7Bfoo",
        "?auth_mechanism=foo",
        "?ssl_options=%7B%27ca_certs%27%3A%27/nope%27%7D",
    ],
)
def test_a_url_that_pika_cannot_read_is_a_setting_that_is_wrong(query: str) -> None:
    with pytest.raises(InvalidSettings, match="AMQP_URL: pika cannot read it") as caught:
        Publisher(BrokerSettings(f"amqps://user:hidden@host/{query}"))
    assert "hidden" not in str(caught.value)


def test_a_host_name_that_no_resolver_takes_is_not_confirmed() -> None:
    publisher = Publisher(BrokerSettings(f"amqp://{'a' * 70}.example/"))
    with pytest.raises(NotConfirmed, match="cannot connect"):
        publisher.publish_task(make_task(), timeout_s=0.3)


class TimeLimit(Exception):
    """As a web server or a task queue raises it from a signal handler."""


@pytest.fixture
def alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGALRM, ring)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def is_free(publisher: Publisher) -> bool:
    """Tell whether another thread could publish."""
    answers: list[bool] = []

    def look() -> None:
        answers.append(publisher._lock.acquire(blocking=False))
        if answers[0]:
            publisher._lock.release()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return answers[0]


def test_no_interruption_leaves_the_publisher_locked(alarm: None) -> None:
    publisher = Publisher(BrokerSettings("amqp://127.0.0.1:1/"))
    interrupted = 0
    for _ in range(3000):
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-6, 6e-5))
            for _ in range(20):
                publisher.publish_tasks([], timeout_s=1)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except TimeLimit:
            interrupted += 1
        assert is_free(publisher)
        assert not publisher._busy
    assert interrupted > 100


def test_a_signal_handler_cannot_publish_while_its_thread_does(silent_port: int) -> None:
    publisher = Publisher(BrokerSettings(f"amqp://127.0.0.1:{silent_port}/"))
    seen: list[BaseException | None] = []

    def ring(*_: object) -> None:
        seen.extend(publisher.publish_tasks([make_task()], timeout_s=HANG_S))

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(NotConfirmed):
            publisher.publish_task(make_task(), timeout_s=1)
    finally:
        signal.signal(signal.SIGALRM, before)
    (error,) = seen
    assert isinstance(error, NotSent)
    assert "signal handler" in str(error)
    assert is_free(publisher)
