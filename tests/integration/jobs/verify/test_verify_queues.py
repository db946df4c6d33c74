"""jobs.verify.queue_walk on a real broker: a look loses, doubles and ages nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from dispatcher.broker import topology
from dispatcher.broker.publisher import Publisher
from dispatcher.broker.topology import EARLIER_DELIVERIES
from dispatcher.message.envelope import encode
from dispatcher.settings import BrokerSettings
from dispatcher.tasks import CLEANUP_TIMEOUT_LABS, CREATE_LAB_POD, DELETE_LAB_POD
from jobs.container.settle import publish_delayed
from jobs.verify import queue_walk
from jobs.verify.inventory import Message
from jobs.verify.queues import BrokerAway, Queues
from tests.support.broker.rabbitmq import Broker
from tests.support.containers.container import ROOT
from tests.support.factories import create_kwargs, make_task
from tests.support.waiting import HANG_S, eventually, eventually_equal

Walk = Callable[..., list[Message]]
NORMAL = topology.QUEUE_NORMAL
#: What the job's own user may do: nothing but read its queues and write our exchanges.
JOB_RIGHTS = {"configure": "^$", "write": r"^(autolabs\.|celery_delayed_27$)", "read": r"^celery\."}


@pytest.fixture
def gaps() -> list[str]:
    return []


@pytest.fixture
def walk(broker: Broker, gaps: list[str]) -> Walk:
    def all_of(queue: str = NORMAL, *, url: str = broker.url, **options: Any) -> list[Message]:
        opened = Queues(BrokerSettings(url))
        try:
            return list(queue_walk.walk(opened, queue, gap=gaps.append, **options))
        finally:
            opened.close()

    return all_of


def publish(broker: Broker, count: int, *, first: int = 1, **changes: Any) -> list[str]:
    return [
        broker.publish_task(kwargs=create_kwargs(lab_instance_id=lab), **changes)
        for lab in range(first, first + count)
    ]


def drain(broker: Broker, queue: str = NORMAL) -> list[str]:
    return [str(broker.take(queue).headers["id"]) for _ in range(broker.depth(queue))]


def test_a_walk_sees_every_message_and_leaves_them_in_order(broker: Broker, walk: Walk) -> None:
    ids = publish(broker, 5)
    seen = walk()
    assert [(one.task_id, one.task_name, one.lab) for one in seen] == [
        (task_id, CREATE_LAB_POD, lab) for lab, task_id in enumerate(ids, start=1)
    ]
    assert all(one.published_at and one.queue == NORMAL for one in seen)
    assert drain(broker) == ids


def test_more_messages_than_are_in_hand_at_a_time(
    broker: Broker, walk: Walk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_walk, "BATCH", 3)
    ids = publish(broker, 8)
    assert [one.task_id for one in walk()] == ids
    assert drain(broker) == ids


def test_large_messages_are_taken_one_by_one(
    broker: Broker, walk: Walk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_walk, "BATCH_BYTES", 10)
    left: list[int] = []
    ids = publish(broker, 4)

    def look(_seen: Message) -> bool:
        left.append(broker.depth(NORMAL))
        return False

    walk(discard=look)
    assert left == [3, 3, 3, 3]
    assert drain(broker) == ids


def test_many_looks_make_no_dead_letter(broker: Broker, walk: Walk) -> None:
    # A quorum queue gives a message up that is returned more than five times.
    (task_id,) = publish(broker, 1)
    for _ in range(20):
        assert [one.task_id for one in walk()] == [task_id]
    message = broker.take(NORMAL)
    assert message.headers["id"] == task_id
    assert not message.redelivered
    assert broker.is_empty(topology.DEAD_LETTER_QUEUE)


def test_a_copy_is_the_message(broker: Broker, walk: Walk) -> None:
    body, sent = encode(make_task(stamps={"a": "b"}, priority=3, reply_to="here", retries=2))
    others = {"message_id": "m", "type": "t", "app_id": "a", "timestamp": 7}
    broker.publish(NORMAL, body, **{**others, **without(sent)})
    before = broker.take(NORMAL)
    broker.publish(NORMAL, body, **{**others, **without(sent)})
    walk()
    after = broker.take(NORMAL)
    added = {queue_walk.COPIED_BY, queue_walk.COPIED_AT}
    assert after.body == before.body
    assert {k: v for k, v in after.headers.items() if k not in added} == before.headers
    names = vars(before.properties).keys() - {"headers"}
    assert {n: getattr(after.properties, n) for n in names} == {
        n: getattr(before.properties, n) for n in names
    }
    assert after.properties.delivery_mode == 2


def without(sent: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sent.items() if name != "delivery_mode"}


def test_a_message_comes_back_by_the_way_it_came(broker: Broker, walk: Walk, publisher: Publisher) -> None:
    publisher.publish_task(make_task())
    publish_delayed(publisher, make_task(), 1)
    eventually_equal(lambda: broker.depth(NORMAL), 2)
    walk()
    assert [broker.take(NORMAL).routing_key for _ in range(2)] == ["lab.create", "lab.create"]


def test_what_went_to_another_queue_than_its_own_stays_there(broker: Broker, walk: Walk) -> None:
    body, sent = encode(make_task(name=DELETE_LAB_POD, kwargs={"lab_instance_id": 1}))
    broker.publish(NORMAL, body, **without(sent))
    assert [one.task_name for one in walk()] == [DELETE_LAB_POD]
    assert broker.depth(NORMAL) == 1
    assert broker.is_empty(topology.QUEUE_HIGH)


def test_what_the_broker_gave_up_stays_given_up(broker: Broker, walk: Walk, publisher: Publisher) -> None:
    task = make_task(expires=datetime.now(timezone.utc) + timedelta(seconds=0.2))
    publisher.publish_task(task)
    eventually_equal(lambda: broker.depth(topology.QUEUE_LOW), 1)
    url = broker.url_of_user(**JOB_RIGHTS)
    assert [one.task_id for one in walk(topology.QUEUE_LOW, url=url)] == [task.id]
    message = broker.take(topology.QUEUE_LOW)
    assert message.headers["x-last-death-reason"] == "expired"
    assert broker.is_empty(NORMAL)


def test_the_jobs_own_user_may_look(broker: Broker, walk: Walk, gaps: list[str]) -> None:
    url = broker.url_of_user(**JOB_RIGHTS)
    publisher = Publisher(broker.settings)
    publisher.publish_task(make_task())
    publisher.close()
    assert len(walk(url=url)) == 1
    assert gaps == []


def test_messages_that_are_no_tasks_are_about_no_lab(broker: Broker, walk: Walk) -> None:
    broker.publish(NORMAL, b"\x80\x04 pickle", content_type="application/x-python-serialize")
    broker.publish_task(name=CLEANUP_TIMEOUT_LABS, kwargs={})
    broker.publish(NORMAL, b"{}", headers={"id": "x", "task": 7})
    assert [(one.lab, one.task_id) for one in walk()] == [(None, ""), (None, "x")]
    assert broker.depth(NORMAL) == 2


@pytest.mark.parametrize("header", ["expires", "autolabs_published_at"])
def test_an_expiration_goes_on(broker: Broker, walk: Walk, header: str) -> None:
    now = datetime.now(timezone.utc)
    expires = now + timedelta(seconds=100) if header == "expires" else None
    published_at = now - timedelta(seconds=60)
    body, sent = encode(make_task(expires=expires, published_at=published_at))
    broker.publish(NORMAL, body, **{**without(sent), "expiration": "160000"})
    left_ms = 100_000
    for _ in range(3):
        walk()
    message = broker.take(NORMAL)
    assert left_ms - 5000 < int(message.properties.expiration) <= left_ms


def test_an_expiration_of_unknown_age_begins_anew_only_once(broker: Broker, walk: Walk) -> None:
    broker.publish(NORMAL, b"no task", expiration="60000")
    walk()
    time.sleep(0.3)
    walk()
    assert int(broker.take(NORMAL).properties.expiration) <= 59_700


def test_a_look_keeps_the_count_of_deliveries(broker: Broker, walk: Walk) -> None:
    (task_id,) = publish(broker, 1)
    channel = broker.channel()
    channel.basic_get(NORMAL)
    channel.connection.close()
    eventually_equal(lambda: broker.depth(NORMAL), 1)
    for _ in range(2):
        walk()
    message = broker.take(NORMAL)
    assert (message.headers["id"], message.redelivered) == (task_id, False)
    assert "x-delivery-count" not in message.headers
    assert message.headers[EARLIER_DELIVERIES] == 1


def test_what_is_discarded_is_gone(broker: Broker, walk: Walk) -> None:
    first, second, third = publish(broker, 3)
    assert len(walk(discard=lambda seen: seen.task_id == second)) == 3
    assert drain(broker) == [first, third]


def test_what_messages_of_high_priority_hide_is_told_and_all_keep_their_order(
    broker: Broker, walk: Walk, gaps: list[str]
) -> None:
    high = publish(broker, 30, priority=9)
    low = publish(broker, 10, first=100)
    seen = {one.task_id for one in walk()}
    assert seen >= set(high)
    # A queue gives one of low priority now and then, and remembers of what it gave last.
    hidden = len(set(low) - seen)
    assert gaps == [f"{NORMAL}: priorities may hide other messages, {hidden} at most"]
    assert hidden > 0
    left = drain(broker)
    assert ([one for one in left if one in high], [one for one in left if one in low]) == (high, low)


@pytest.fixture
def limit(broker: Broker) -> Iterator[Callable[[], None]]:
    """Let the queue of creates have one message from now on."""
    path = f"/policies/{broker.vhost}/full"
    policy = {"pattern": f"^{NORMAL}$", "definition": {"max-length": 1}, "apply-to": "queues"}
    yield lambda: broker.api.call("PUT", path, policy)
    broker.api.call("DELETE", path)


def test_a_full_queue_is_told_and_loses_nothing(
    broker: Broker, limit: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_walk, "BATCH", 1)  # what is in our hands does not count for the length
    ids = publish(broker, 3)
    limit()
    slow = BrokerSettings(broker.url, publish_timeout_s=1.0)
    eventually(lambda: _refuses(slow), what="a full queue")
    assert sorted(drain(broker)) == sorted(ids)


def _refuses(settings: BrokerSettings) -> bool:
    opened = Queues(settings)
    try:
        list(queue_walk.walk(opened, NORMAL, gap=lambda _gap: None))
    except BrokerAway:
        return True
    finally:
        opened.close()
    return False


def test_a_missing_queue_is_a_broker_that_cannot_be_looked_at(bare_broker: Broker) -> None:
    opened = Queues(bare_broker.settings)
    with pytest.raises(BrokerAway, match="celery"):
        opened.count([NORMAL])
    opened.close()


def test_nobody_listening_is_a_broker_that_is_away() -> None:
    with pytest.raises(BrokerAway):
        Queues(BrokerSettings("amqp://guest:guest@127.0.0.1:1/"))


@pytest.fixture
def consumed(broker: Broker) -> Iterator[list[str]]:
    """Task ids as a consumer acknowledged them, until the queue was silent."""
    taken: list[str] = []
    stop = threading.Event()

    def consume() -> None:
        channel = broker.channel()
        channel.basic_qos(prefetch_count=1)
        for method, properties, _ in channel.consume(NORMAL, inactivity_timeout=0.1):
            if method is not None:
                taken.append(str(properties.headers["id"]))
                channel.basic_ack(method.delivery_tag)
            if stop.is_set() and method is None:
                break
        channel.cancel()

    thread = threading.Thread(target=consume)
    thread.start()
    yield taken
    stop.set()
    thread.join(HANG_S)


def test_nothing_is_lost_or_doubled_beside_a_consumer_and_a_publisher(
    broker: Broker, walk: Walk, publisher: Publisher, consumed: list[str]
) -> None:
    ids = []
    for _ in range(12):
        some = [make_task() for _ in range(20)]
        assert publisher.publish_tasks(some) == [None] * len(some)
        ids += [task.id for task in some]
        walk()
    eventually(lambda: len(consumed) >= len(ids), what="everything consumed")
    assert sorted(consumed) == sorted(ids)
    assert broker.is_empty(NORMAL)


#: One look after the other, until it is killed.
_VICTIM = """
import sys
from dispatcher.settings import BrokerSettings
from jobs.verify.queue_walk import walk
from jobs.verify.queues import Queues
queues = Queues(BrokerSettings(sys.argv[1]))
while True:
    for _ in walk(queues, sys.argv[2], gap=print):
        pass
    print("round", flush=True)
"""


def test_killed_looks_lose_nothing_and_make_few_copies(
    broker: Broker, publisher: Publisher, consumed: list[str]
) -> None:
    ids, kills = [], 4
    for kill in range(kills):
        with subprocess.Popen(
            [sys.executable, "-c", _VICTIM, broker.url, NORMAL], cwd=ROOT, stdout=subprocess.PIPE
        ) as victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == b"round\n"
            some = [make_task() for _ in range(400)]
            assert publisher.publish_tasks(some) == [None] * len(some)
            ids += [task.id for task in some]
            time.sleep(0.02 * kill)  # at another place of a round each
            assert broker.depth(NORMAL) > 0
            victim.kill()
    eventually(lambda: set(consumed) >= set(ids), 2 * HANG_S, what="everything consumed")
    assert len(consumed) - len(ids) <= kills * queue_walk.BATCH
    assert broker.is_empty(topology.DEAD_LETTER_QUEUE)
