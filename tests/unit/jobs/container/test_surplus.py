from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.container import consumer


class Crowd:
    """A queue at which three others wait, and a clock that goes on while one waits."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.waiting = 4

    def channel(self) -> Crowd:
        return self

    def monotonic(self) -> float:
        return self.now_s

    def process_data_events(self, *, time_limit: float) -> None:
        self.now_s += time_limit

    def queue_declare(self, _queue: str, *, passive: bool) -> Any:
        assert passive
        return SimpleNamespace(method=SimpleNamespace(consumer_count=self.waiting))

    def basic_qos(self, **_options: int) -> None:
        """Take the prefetch count."""

    def add_on_cancel_callback(self, _callback: object) -> None:
        """Note who is told of a consumer's end."""

    def basic_consume(self, *_words: object) -> str:
        return "tag"

    def basic_cancel(self, _tag: str) -> None:
        """Cancel the consumer."""


def left_after_s(monkeypatch: pytest.MonkeyPatch) -> float:
    """Return the seconds after which a container leaves that is one too many."""
    crowd = Crowd()
    monkeypatch.setattr(consumer, "time", crowd)
    taker = consumer.Consumer(crowd, "queue")
    found = taker.claim(wait_s=300, stop=threading.Event(), on_waiting=lambda: None, spares=2)
    assert found is None
    return crowd.now_s


def test_containers_that_came_together_do_not_leave_together(monkeypatch: pytest.MonkeyPatch) -> None:
    shortest_s, longest_s = consumer._SURPLUS_LOOK_S
    seconds = [left_after_s(monkeypatch) for _ in range(50)]
    assert shortest_s <= min(seconds)
    assert max(seconds) <= longest_s + 2 * consumer._TICK_S
    # At whole ticks there are some twenty moments to leave.
    assert len({*seconds}) > 5
