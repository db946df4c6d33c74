"""The connection itself: TLS, heartbeats, large bodies, and servers that are no brokers."""

from __future__ import annotations

import gc
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher import NotConfirmed
from dispatcher.broker import topology
from dispatcher.broker.publisher import Publisher
from dispatcher.message.envelope import decode
from dispatcher.settings import BrokerSettings
from tests.support.broker.rabbitmq import Broker
from tests.support.broker.tcp_proxy import TcpProxy
from tests.support.certificate import make_certificate
from tests.support.factories import make_task
from tests.support.http_server import Answer, ScriptedServer
from tests.support.waiting import HANG_S, eventually

HEARTBEAT_S = 1


def idle_for(seconds: float) -> None:
    until = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > until, seconds + HANG_S)


def keepalive_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "autolabs-keepalive"]


def test_an_idle_connection_stays_alive(broker: Broker, proxy: TcpProxy) -> None:
    publisher = Publisher(BrokerSettings(proxy.through(broker.url), heartbeat_s=HEARTBEAT_S))
    publisher.publish_task(make_task())
    idle_for(4 * HEARTBEAT_S)  # the broker ends a connection that is silent for twice its heartbeat
    publisher.publish_task(make_task())
    assert proxy.accepted == 1
    publisher.close()


def test_an_idle_connection_that_died_is_noticed_before_the_next_publish(
    broker: Broker, proxy: TcpProxy
) -> None:
    publisher = Publisher(BrokerSettings(proxy.through(broker.url), heartbeat_s=HEARTBEAT_S))
    publisher.publish_task(make_task())
    proxy.freeze()
    eventually(lambda: publisher._link is None, what="the dead connection was dropped")
    proxy.thaw()
    publisher.publish_task(make_task())
    publisher.close()


def test_a_publisher_that_nobody_keeps_leaves_no_thread(broker: Broker) -> None:
    before = len(keepalive_threads())
    closed = Publisher(BrokerSettings(broker.url, heartbeat_s=HEARTBEAT_S))
    closed.publish_task(make_task())
    assert len(keepalive_threads()) == before + 1
    closed.close()
    eventually(lambda: len(keepalive_threads()) == before)
    forgotten = Publisher(BrokerSettings(broker.url, heartbeat_s=HEARTBEAT_S))
    forgotten.publish_task(make_task())
    forgotten._discard()
    del forgotten
    gc.collect()
    eventually(lambda: len(keepalive_threads()) == before)


def test_a_body_larger_than_a_frame_arrives_whole(broker: Broker, publisher: Publisher) -> None:
    task = make_task(kwargs={"text": "x" * 500_000})
    publisher.publish_task(task)
    message = broker.take(topology.QUEUE_NORMAL)
    assert decode(message.body, message.properties).kwargs == task.kwargs


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls_proxy(broker: Broker, certificate: Path) -> Iterator[TcpProxy]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with TcpProxy.to(broker.url, tls=context) as proxy:
        yield proxy


def test_amqps_is_spoken_with_a_server_that_is_trusted(
    broker: Broker, tls_proxy: TcpProxy, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    url = tls_proxy.through(broker.url).replace("amqp://", "amqps://", 1)
    publisher = Publisher(BrokerSettings(url))
    assert publisher.publish_tasks([make_task() for _ in range(500)]) == [None] * 500
    publisher.close()
    assert broker.depth(topology.QUEUE_NORMAL) == 500


def test_a_server_that_is_not_trusted_gets_no_password(broker: Broker, tls_proxy: TcpProxy) -> None:
    url = tls_proxy.through(broker.url).replace("amqp://", "amqps://", 1)
    with pytest.raises(NotConfirmed, match="certificate verify failed"):
        Publisher(BrokerSettings(url, publish_timeout_s=0.5)).publish_task(make_task())


def test_a_server_that_is_no_broker_is_told_apart() -> None:
    with ScriptedServer(lambda _request: Answer()) as server:
        url = server.url.replace("http://", "amqp://user:hidden@")
        with pytest.raises(NotConfirmed, match=r"not AMQP 0-9-1|closed by the broker|in time") as caught:
            Publisher(BrokerSettings(url, publish_timeout_s=1)).publish_task(make_task())
    assert "hidden" not in str(caught.value)


def test_a_host_that_does_not_exist_is_named_by_the_resolvers_words() -> None:
    with pytest.raises(NotConfirmed, match="cannot connect"):
        Publisher(BrokerSettings("amqp://rabbitmq.invalid/", publish_timeout_s=1)).publish_task(make_task())
