from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher import tasks
from dispatcher.broker import delay_ladder
from dispatcher.broker.publisher import Publisher
from dispatcher.message import envelope
from dispatcher.settings import BrokerSettings
from jobs.config.environment import RetrySettings
from jobs.container.settle import MAX_RETRY_DELAY_S, publish_delayed, retry_delay_s
from jobs.waiting import through_blips
from tests.support.broker.routing import delay_of
from tests.support.factories import make_task
from tests.support.waiting import ends_within


class Blip(Exception):
    pass


def failing(times: int) -> Callable[[], str]:
    left = [Blip(str(n)) for n in range(times)]

    def call() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return call


def test_a_blip_is_retried() -> None:
    assert through_blips(failing(2), on=(Blip,), within_s=5, what="call") == "done"


def test_what_lasts_comes_out_as_it_is_within_the_time() -> None:
    with ends_within(), pytest.raises(Blip):
        through_blips(failing(1000), on=(Blip,), within_s=0.5, what="call")


def test_other_errors_are_not_retried() -> None:
    calls = failing(1)
    with pytest.raises(Blip):
        through_blips(calls, on=(OSError,), within_s=5, what="call")
    assert calls() == "done"


def test_the_delays_of_the_specification() -> None:
    settings = RetrySettings(jitter=False)
    assert [retry_delay_s(settings, n) for n in range(9)] == [5, 10, 20, 40, 80, 160, 320, 640, 640]


@given(st.integers(0, 20), st.floats(0.1, 600), st.floats(1, 10))
def test_jitter_shortens_by_half_at_most(retries: int, delay_s: float, backoff: float) -> None:
    full = retry_delay_s(RetrySettings(delay_s=delay_s, backoff=backoff, jitter=False), retries)
    jittered = retry_delay_s(RetrySettings(delay_s=delay_s, backoff=backoff), retries)
    assert min(full / 2, MAX_RETRY_DELAY_S) <= jittered <= MAX_RETRY_DELAY_S
    assert jittered > 0


class RecordingPublisher(Publisher):
    def __init__(self) -> None:
        super().__init__(BrokerSettings("amqp://nobody"))
        self.published: list[tuple[str, str, dict[str, object]]] = []

    def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: dict[str, object],
        *,
        timeout_s: float | None = None,
        mandatory: bool = True,
    ) -> None:
        self.published.append((exchange, routing_key, properties))


@pytest.mark.parametrize(("delay_s", "held_s"), [(0.0001, 1), (3.5, 4), (5, 5), (5.001, 6), (640, 640)])
def test_a_delayed_task_waits_on_the_ladder_for_whole_seconds(delay_s: float, held_s: int) -> None:
    publisher = RecordingPublisher()
    expires = datetime.now(timezone.utc) + timedelta(hours=1)
    publish_delayed(publisher, make_task(expires=expires), delay_s)
    ((exchange, routing_key, properties),) = publisher.published
    assert exchange == delay_ladder.ENTRY_EXCHANGE
    assert delay_ladder.plain_routing_key(routing_key) == tasks.ROUTING_KEYS[tasks.CREATE_LAB_POD]
    assert delay_of(routing_key) == held_s
    # It would end the wait on the first level that is longer.
    assert "expiration" not in properties


def test_a_retried_task_keeps_its_id_on_the_wire() -> None:
    publisher = RecordingPublisher()
    task = make_task(retries=1)
    publish_delayed(publisher, envelope.next_attempt(task), 5)
    properties = publisher.published[0][2]
    headers = properties["headers"]
    assert isinstance(headers, dict)
    assert (headers["id"], headers["retries"]) == (task.id, 2)
    assert properties["correlation_id"] == task.id
