"""The waits that the docs promise; the tests of what follows a wait make it shorter."""

from __future__ import annotations

import inspect

import pytest

import jobs.__main__
import jobs.cluster.client
import jobs.cluster.evidence
import jobs.container.consumer
import jobs.database.connection
import jobs.notify.notifications
import jobs.notify.redis_results
from console.explain import reading
from dispatcher.outbox import relay_turns
from jobs.cluster.lab_objects import GONE_TIMEOUT_S, LabObjects
from jobs.handlers.resize import UNDO_S

SECONDS = {
    "a container waits for the broker": (jobs.__main__.BROKER_BLIP_S, 15),
    "a task waits for the database": (jobs.database.connection.BLIP_S, 8),
    "a task waits for the API server": (jobs.cluster.client.BLIP_S, 8),
    "a spare too many looks around": (jobs.container.consumer._SURPLUS_LOOK_S, (5, 15)),
    "the broker takes note of a settlement": (jobs.container.consumer.SETTLE_TIMEOUT_S, 5),
    "a webhook answers": (jobs.notify.notifications.WEBHOOK_TIMEOUT_S, 3),
    "a failed lab is looked at": (jobs.cluster.evidence.PATIENCE_S, 2),
    "a task waits for Redis": (jobs.notify.redis_results.PATIENCE_S, 2),
    "a backend leaves a broker that is away alone": (relay_turns.PAUSE_S, 5),
    "explain waits for the broker": (reading.QUEUE_TIMEOUT_S, 3),
    "Pods go": (GONE_TIMEOUT_S, 60),
    "a node takes a change back": (UNDO_S, 30),
}


@pytest.mark.parametrize("what", SECONDS)
def test_a_wait_is_as_long_as_the_docs_say(what: str) -> None:
    found, said = SECONDS[what]
    assert found == said


def test_a_container_puts_five_hundred_messages_aside_within_half_a_minute() -> None:
    assert (jobs.__main__.MAX_PUT_ASIDE, jobs.__main__.PUT_ASIDE_S) == (500, 30)


def test_pods_that_go_are_waited_for_for_that_long() -> None:
    default = inspect.signature(LabObjects.wait_gone).parameters["timeout_s"].default
    assert default == GONE_TIMEOUT_S
