"""A pile of messages that are no tasks, and what waits behind it."""

from __future__ import annotations

from collections import Counter

from dispatcher import topology
from dispatcher.tasks import CLEANUP_TIMEOUT_LABS
from tests.integration.test_poison import POISON
from tests.support.container import Containers
from tests.support.postgres import Database
from tests.support.rabbitmq import Broker
from tests.support.waiting import eventually

#: Messages of each kind.
COPIES = 10


def pile_up(broker: Broker, *, copies: int) -> list[bytes]:
    sent = []
    for body, headers, properties, _ in list(POISON.values()) * copies:
        broker.publish(topology.QUEUE_LOW, body, headers=headers, **properties)
        sent.append(body)
    return sent


def test_one_container_puts_a_pile_aside_and_performs_the_task_behind_it(
    containers: Containers, broker: Broker, database: Database
) -> None:
    sent = pile_up(broker, copies=COPIES)
    task_id = broker.publish_task(name=CLEANUP_TIMEOUT_LABS, kwargs={})
    code, container = containers.run(queue=topology.QUEUE_LOW, CLAIM_WAIT_S=60)
    assert code == 0
    assert broker.depth(topology.DEAD_LETTER_QUEUE) == len(sent) >= 200
    kept = Counter(broker.take(topology.DEAD_LETTER_QUEUE).body for _ in sent)
    assert kept == Counter(sent)
    (run,) = (row for row in database.ledger() if row["task_id"] == task_id)
    assert run["outcome"] == "succeeded"
    lines = container.lines()
    (claimed,) = (line for line in lines if line.get("action") == "claimed" and line["task_id"] == task_id)
    print(f"{len(sent)} messages put aside, the task behind them claimed after {claimed['waited_s']} s")
    assert broker.is_empty()


def test_after_a_task_nothing_else_is_taken(containers: Containers, broker: Broker) -> None:
    broker.publish(topology.QUEUE_LOW, b"no task")
    for _ in range(2):
        broker.publish_task(name=CLEANUP_TIMEOUT_LABS, kwargs={})
    code, container = containers.run(queue=topology.QUEUE_LOW)
    assert code == 0
    assert broker.depth(topology.QUEUE_LOW) == 1
    assert container.actions().count("done") == 1


def test_a_container_is_not_ready_for_good_after_what_is_no_task(
    containers: Containers, broker: Broker
) -> None:
    broker.publish(topology.QUEUE_LOW, b"no task")
    process = containers.start(queue=topology.QUEUE_LOW, CLAIM_WAIT_S=30)
    process.wait_for_action("dead_lettered")
    eventually(lambda: not process.is_ready(), what="readiness taken back")
    assert process.popen.poll() is None
    broker.publish_task(name=CLEANUP_TIMEOUT_LABS, kwargs={})
    assert process.wait() == 0
    assert process.actions()[-1] == "done"
