from __future__ import annotations

import os
import signal
import threading

import pytest

from dispatcher import CREATE_LAB_POD, Dispatcher, NotConfirmed, Unroutable
from dispatcher.broker import topology
from dispatcher.broker.publisher import Publisher
from dispatcher.message.envelope import decode
from dispatcher.settings import BrokerSettings
from tests.support.broker.queues import full_queue
from tests.support.broker.rabbitmq import Broker
from tests.support.broker.tcp_proxy import TcpProxy
from tests.support.factories import IMAGE, create_kwargs, make_task
from tests.support.waiting import HANG_S, ends_within, eventually, eventually_equal

#: Seconds that nothing has to wait for.
LONG_S = 10 * HANG_S


def through(proxy: TcpProxy, broker: Broker, *, timeout_s: float) -> Publisher:
    return Publisher(BrokerSettings(proxy.through(broker.url), publish_timeout_s=timeout_s))


def test_a_published_task_is_in_its_queue_when_the_call_returns(broker: Broker) -> None:
    with Dispatcher(broker.url) as dispatcher:
        task_id = dispatcher.create_lab(**create_kwargs())
        delete_id = dispatcher.delete_lab(lab_instance_id=1, force=True, task_id="my-own-id")
        cleanup_id = dispatcher.send_task("celery_workers.cleanup_timeout_labs")
    assert [broker.depth(queue) for queue in topology.BINDINGS] == [1, 1, 1]
    assert delete_id == "my-own-id"
    message = broker.take(topology.QUEUE_NORMAL)
    sent = message.properties
    task = decode(message.body, sent)
    assert (task.id, task.name, sent.correlation_id) == (task_id, CREATE_LAB_POD, task_id)
    assert task.kwargs["docker_image"] == IMAGE
    assert sent.delivery_mode == 2
    assert broker.take(topology.QUEUE_LOW).headers["id"] == cleanup_id


def test_send_task_takes_arguments_by_position(broker: Broker) -> None:
    with Dispatcher(broker.url) as dispatcher:
        dispatcher.send_task(CREATE_LAB_POD, [12345, 7, 42, IMAGE])
    assert broker.depth(topology.QUEUE_NORMAL) == 1


def test_publishing_to_an_unbound_queue_raises_unroutable(broker: Broker, publisher: Publisher) -> None:
    broker.channel().queue_unbind(topology.QUEUE_NORMAL, topology.TASKS_EXCHANGE, "#.lab.create")
    task = make_task()
    with pytest.raises(Unroutable, match="no queue is bound to exchange") as caught:
        publisher.publish_task(task)
    assert caught.value.task_id == task.id


def test_publishing_to_a_deleted_queue_raises_unroutable_and_works_once_it_is_back(
    broker: Broker, publisher: Publisher
) -> None:
    broker.channel().queue_delete(topology.QUEUE_NORMAL)
    with pytest.raises(Unroutable):
        publisher.publish_task(make_task())
    broker.declare()
    publisher.publish_task(make_task())
    assert broker.depth(topology.QUEUE_NORMAL) == 1


def test_a_missing_exchange_raises_unroutable_at_once(bare_broker: Broker) -> None:
    publisher = Publisher(BrokerSettings(bare_broker.url, publish_timeout_s=LONG_S))
    with ends_within(), pytest.raises(Unroutable, match=r"autolabs\.tasks"):
        publisher.publish_task(make_task())
    publisher.close()


def test_a_full_queue_is_not_confirmed(broker: Broker) -> None:
    publisher = Publisher(BrokerSettings(broker.url, publish_timeout_s=1))

    def fill() -> None:
        for _ in range(20):  # a quorum queue takes a few more than its limit
            publisher.publish_task(make_task())

    with full_queue(broker), pytest.raises(NotConfirmed, match="within 1 s"):
        fill()
    publisher.close()


def test_a_connection_that_the_broker_closed_is_replaced(broker: Broker, publisher: Publisher) -> None:
    publisher.publish_task(make_task())
    broker.close_connection("test-publisher")
    publisher.publish_task(make_task())
    assert broker.depth(topology.QUEUE_NORMAL) == 2


def test_a_connection_that_was_cut_is_replaced(broker: Broker, proxy: TcpProxy) -> None:
    publisher = through(proxy, broker, timeout_s=HANG_S)
    publisher.publish_task(make_task())
    proxy.cut()
    publisher.publish_task(make_task())
    assert broker.depth(topology.QUEUE_NORMAL) == 2
    assert proxy.accepted == 2
    publisher.close()


def test_a_lost_confirm_gives_the_task_twice_under_one_id(broker: Broker, proxy: TcpProxy) -> None:
    publisher = through(proxy, broker, timeout_s=HANG_S)
    publisher.publish_task(make_task())
    task = make_task()
    seen: list[bytes] = []

    def first_publish(data: bytes) -> bool:
        if task.id.encode() not in data or seen:
            return False
        seen.append(data)
        return True

    proxy.swallow_answer_to = first_publish
    publisher.publish_task(task)
    assert broker.depth(topology.QUEUE_NORMAL) == 3
    broker.take(topology.QUEUE_NORMAL)
    assert {broker.take(topology.QUEUE_NORMAL).headers["id"] for _ in range(2)} == {task.id}
    publisher.close()


def test_a_dead_port_is_not_confirmed_within_the_timeout(broker: Broker, proxy: TcpProxy) -> None:
    publisher = through(proxy, broker, timeout_s=1)
    publisher.publish_task(make_task())
    proxy.close()
    with ends_within(), pytest.raises(NotConfirmed, match="within 1 s"):
        publisher.publish_task(make_task())


@pytest.mark.parametrize("connected", [True, False], ids=["connected before", "not connected"])
def test_a_network_that_swallows_everything_is_not_confirmed_within_the_timeout(
    broker: Broker, proxy: TcpProxy, connected: bool
) -> None:
    publisher = through(proxy, broker, timeout_s=1)
    if connected:
        publisher.publish_task(make_task())
    proxy.freeze()
    with ends_within(), pytest.raises(NotConfirmed, match="within 1 s"):
        publisher.publish_task(make_task())


def test_threads_that_wait_for_each_other_keep_their_timeouts(broker: Broker, proxy: TcpProxy) -> None:
    publisher = through(proxy, broker, timeout_s=1)
    proxy.close()
    errors: list[Exception] = []

    def publish() -> None:
        try:
            publisher.publish_task(make_task())
        except NotConfirmed as exc:
            errors.append(exc)

    # One after the other they would take 20 s.
    threads = [threading.Thread(target=publish) for _ in range(20)]
    with ends_within():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG_S)
    assert len(errors) == 20


def test_eight_threads_share_one_connection(broker: Broker) -> None:
    ids: list[str] = []
    with Dispatcher(broker.url) as dispatcher:

        def publish() -> None:
            ids.extend(dispatcher.create_lab(**create_kwargs()) for _ in range(10))

        threads = [threading.Thread(target=publish) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG_S)
    assert len(set(ids)) == 80
    eventually_equal(lambda: broker.depth(topology.QUEUE_NORMAL), 80)


def test_a_forked_process_opens_a_connection_of_its_own(broker: Broker, publisher: Publisher) -> None:
    publisher.publish_task(make_task())
    child = os.fork()
    if child == 0:  # the child must not run any of pytest's clean-up
        try:
            publisher.publish_task(make_task())
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    publisher.publish_task(make_task())
    assert broker.depth(topology.QUEUE_NORMAL) == 3


@pytest.mark.parametrize("timeout_s", [0, -1, -5])
def test_no_time_is_no_publish(broker: Broker, publisher: Publisher, timeout_s: float) -> None:
    publisher.publish_task(make_task())
    with pytest.raises(NotConfirmed, match="was not sent within 0 s"):
        publisher.publish_task(make_task(), timeout_s=timeout_s)
    publisher.publish_task(make_task())
    assert broker.depth(topology.QUEUE_NORMAL) == 2


def test_a_publish_that_is_interrupted_leaves_no_half_message(broker: Broker, proxy: TcpProxy) -> None:
    class TimeLimit(BaseException):
        """As a web server raises it in the middle of a request."""

    def ring(*_: object) -> None:
        raise TimeLimit

    publisher = through(proxy, broker, timeout_s=30)
    publisher.publish_task(make_task())
    proxy.freeze()
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(TimeLimit):
            publisher.publish_task(make_task(kwargs={"text": "x" * 900_000}))
    finally:
        signal.signal(signal.SIGALRM, before)
    proxy.thaw()
    publisher.publish_task(make_task(id="after"))
    assert proxy.accepted == 2
    # The network may have kept the interrupted one, whole or not at all, and deliver it late.
    eventually(lambda: broker.take(topology.QUEUE_NORMAL).headers["id"] == "after")
    publisher.close()


@pytest.mark.parametrize("wrong", ["user", "vhost"])
def test_a_refused_login_is_told_at_once(broker: Broker, wrong: str) -> None:
    url = broker.url.replace("://", "://nobody-", 1) if wrong == "user" else f"{broker.url}-nowhere"
    publisher = Publisher(BrokerSettings(url, publish_timeout_s=LONG_S))
    with ends_within(), pytest.raises(Unroutable, match=r"ACCESS_REFUSED|NOT_ALLOWED") as caught:
        publisher.publish_task(make_task())
    assert caught.value.__cause__ is not None
    assert "@" not in str(caught.value)


def test_no_exception_of_the_socket_leaks(broker: Broker) -> None:
    with pytest.raises(NotConfirmed, match="Connection refused") as caught:
        Publisher(BrokerSettings("amqp://user:hidden@127.0.0.1:1/", publish_timeout_s=1)).publish_task(
            make_task()
        )
    assert caught.value.__cause__ is not None
    assert "hidden" not in str(caught.value)
