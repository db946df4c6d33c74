from __future__ import annotations

import threading
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any, ClassVar

import pika
import pytest

from jobs import __main__ as main_module
from jobs.container.consumer import Consumer, Delivery, Settlement

DELIVERY = Delivery(b"", pika.BasicProperties(), "lab.create", redelivered=False, tag=7)


class Channel:
    """Note what is settled; RabbitMQ tells reject and nack apart only from 4.3 on."""

    def __init__(self) -> None:
        self.settled: list[tuple[str, int, bool]] = []

    def basic_qos(self, **_options: int) -> None:
        """Take the prefetch count."""

    def add_on_cancel_callback(self, _callback: object) -> None:
        """Note who is told of a consumer's end."""

    def basic_reject(self, tag: int, *, requeue: bool) -> None:
        self.settled.append(("reject", tag, requeue))

    def basic_nack(self, tag: int, *, requeue: bool) -> None:
        self.settled.append(("nack", tag, requeue))

    def basic_ack(self, tag: int) -> None:
        self.settled.append(("ack", tag, False))


class Connection:
    """A connection that is closed: nothing is waited for."""

    is_closed = True

    def __init__(self) -> None:
        self.only_channel = Channel()

    def channel(self) -> Channel:
        return self.only_channel

    def close(self) -> None:
        """Close it."""

    def process_data_events(self, *, time_limit: float) -> None:
        threading.Event().wait(min(time_limit, 0.01))

    def add_callback_threadsafe(self, _callback: object) -> None:
        """Wake nobody."""


SETTLEMENTS = {
    "done": Settlement.ACK,
    "retried": Settlement.RETRY,
    "dead-lettered": Settlement.DEAD_LETTER,
    "no task": Settlement.DEAD_LETTER,
    "no task, retried": Settlement.RETRY,
}


class WarmUp:
    #: Nobody is to be told of anything.
    notifications: ClassVar[list[int]] = []

    def __init__(self, _settings: object) -> None:
        """Need no settings."""

    def connections(self) -> WarmUp:
        """Connect to nothing."""
        return self


@pytest.mark.parametrize(("failed", "verb"), [(True, "reject"), (False, "nack")])
def test_only_a_failure_is_counted_by_the_broker(failed: bool, verb: str) -> None:
    connection: Any = Connection()
    Consumer(connection, "q").give_back(DELIVERY, failed=failed)
    assert connection.only_channel.settled == [(verb, 7, True)]


@pytest.mark.parametrize(
    ("how", "code", "verb"),
    [
        ("done", main_module.EXIT_OK, "ack"),
        ("retried", main_module.EXIT_OK, "ack"),
        ("dead-lettered", main_module.EXIT_OK, "ack"),
        ("no task", None, "ack"),
        ("no task, retried", None, "ack"),
        ("given back", main_module.EXIT_GIVEN_BACK, "reject"),
        ("bug", main_module.EXIT_GIVEN_BACK, "reject"),
        ("stopped", main_module.EXIT_SIGTERM, "nack"),
    ],
)
def test_a_task_that_sigterm_cuts_short_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, how: str, code: int | None, verb: str
) -> None:
    stop, released = threading.Event(), threading.Event()

    def run_task(*_arguments: object) -> Settlement:
        if how == "bug":
            raise RuntimeError(how)
        if how == "stopped":
            stop.set()
            released.wait(10)
        return SETTLEMENTS.get(how, Settlement.NACK)

    monkeypatch.setattr("jobs.container.run_task.run_task", run_task)
    monkeypatch.setattr("jobs.container.run_task.is_task", lambda _delivery: not how.startswith("no task"))
    monkeypatch.setattr(main_module, "WarmUp", WarmUp)
    connection = Connection()
    untyped: Any = (connection, SimpleNamespace(ready_port=0))
    container = main_module.Container(Consumer(untyped[0], "q"), untyped[1], stop, datetime.now(timezone.utc))
    try:
        assert container._serve_one(DELIVERY, waited_s=0.0) == code
    finally:
        released.set()
    assert [settled[0] for settled in connection.only_channel.settled] == [verb]
