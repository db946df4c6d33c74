"""A vhost, a database and a bucket of its own for each test that asks for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from celery import Celery
from sqlalchemy import Engine

import jobs.cluster.client
import jobs.database
import jobs.database.connection
import jobs.verify.queues
from dispatcher import celery_config
from dispatcher.broker import topology
from dispatcher.broker.publisher import Publisher
from dispatcher.engine import make_engine
from jobs.cluster.access import ClusterAccess
from jobs.cluster.client import Cluster
from jobs.config.environment import JobSettings
from jobs.config.stored import upload_defaults
from jobs.database.lab_store import LabStore
from jobs.handlers.context import Connections
from jobs.notify.notifications import Notifier
from tests.support.broker.celery_versions import VERSIONS, CeleryVersion, close_app
from tests.support.broker.outbox import Arrivals
from tests.support.broker.rabbitmq import Broker
from tests.support.broker.tcp_proxy import TcpProxy
from tests.support.broker.vhost_pool import VhostPool
from tests.support.cluster.fake_cluster import FakeCluster
from tests.support.containers.container import Containers
from tests.support.database.database_pool import DatabasePool
from tests.support.database.postgres import Database, Server
from tests.support.http_server import ScriptedServer
from tests.support.labs.cleaning import Cleaning
from tests.support.labs.creates import LAST_TRY
from tests.support.labs.health import Checking
from tests.support.labs.notifying import Platform, make_notifier, webhook_environ
from tests.support.labs.syncing import Sync
from tests.support.labs.verifying import (  # noqa: F401
    Actions,
    api_server,
    api_url,
    before_repairs,
    between_looks,
    verify,
)
from tests.support.lending import lent_database, lent_vhost
from tests.support.store import Bucket
from tests.support.webhook import Receiver, receiver


@pytest.fixture
def bare_broker() -> Iterator[Broker]:
    """An empty vhost."""
    broker = Broker.create(os.environ["AMQP_URL"], os.environ["RABBITMQ_API_URL"])
    yield broker
    broker.remove()


@pytest.fixture
def broker(vhost_pool: VhostPool, request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A vhost with the topology."""
    with lent_vhost(vhost_pool, request.node) as broker:
        yield broker


@pytest.fixture
def proxy(broker: Broker) -> Iterator[TcpProxy]:
    """A way to the broker that a test cuts or freezes."""
    with TcpProxy.to(broker.url) as proxy:
        yield proxy


@pytest.fixture
def publisher(broker: Broker) -> Iterator[Publisher]:
    publisher = Publisher(broker.settings, name="test-publisher")
    yield publisher
    publisher.close()


@pytest.fixture
def bare_database(database_server: Server) -> Iterator[Database]:
    """An empty database."""
    database = database_server.create()
    yield database
    database.drop()


@pytest.fixture
def database(database_pool: DatabasePool, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database with the tables."""
    with lent_database(database_pool, request.node) as database:
        yield database


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    engine = make_engine(database.url, application_name="test-backend")
    yield engine
    engine.dispose()


@pytest.fixture
def arrivals(broker: Broker) -> Arrivals:
    """Every task that reaches the broker."""
    return Arrivals(broker)


@pytest.fixture
def labs(database: Database) -> Iterator[LabStore]:
    store = LabStore(database.url, application_name="test-labs")
    yield store
    store.close()


@pytest.fixture
def bare_bucket() -> Iterator[Bucket]:
    """A bucket that does not exist yet."""
    keys = [os.environ[name] for name in ("S3_ENDPOINT", "S3_ACCESS_KEY", "S3_SECRET_KEY")]
    bucket = Bucket(*keys)
    yield bucket
    bucket.remove()


@pytest.fixture
def bucket(bare_bucket: Bucket) -> Bucket:
    """A bucket with the default templates and settings."""
    upload_defaults(bare_bucket.settings)
    return bare_bucket


@pytest.fixture
def containers(
    broker: Broker, database: Database, bare_bucket: Bucket, tmp_path: Path
) -> Iterator[Containers]:
    """Containers whose cluster does not answer; most of what a container does needs none."""
    environ = {
        "PATH": os.environ["PATH"],
        "AMQP_URL": broker.url,
        "DATABASE_URL": database.url,
        **bare_bucket.environ,
        "CELERY_TASK_RETRY_JITTER": "false",
    }
    containers = Containers(environ, tmp_path)
    yield containers
    containers.end()


@pytest.fixture
def redis_url() -> str:
    """A database of Redis that no container of the cluster uses."""
    return urlunsplit(urlsplit(os.environ["REDIS_URL"])._replace(path="/9"))


@pytest.fixture
def celery_app(broker: Broker, redis_url: str) -> Iterator[Celery]:
    """A backend's Celery app, which publishes with our settings and reads results from Redis."""
    app = Celery("backend", broker=broker.url, backend=redis_url, set_as_current=False)
    app.conf.update(celery_config())
    yield app
    app.backend.result_consumer.stop()
    close_app(app)


@pytest.fixture
def cluster() -> FakeCluster:
    """An API server that a test scripts."""
    return FakeCluster()


@pytest.fixture
def connections(
    broker: Broker,
    database: Database,
    bucket: Bucket,
    cluster: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Connections]:
    """A container's connections, for `run_task` in this process."""
    monkeypatch.setattr(jobs.cluster.client, "BLIP_S", 0.2)
    monkeypatch.setattr(jobs.database.connection, "BLIP_S", 0.2)
    settings = JobSettings(
        broker=broker.settings,
        database_url=database.url,
        store=bucket.settings,
        retry=LAST_TRY,
        queue=topology.QUEUE_NORMAL,
        claim_wait_s=1,
        ready_port=1,
        namespace="labs",
        kubeconfig_object="",
        pod_name="pod",
        job_name="job",
        log_level="INFO",
    )
    with ScriptedServer(cluster) as server:
        cluster.serve_at(server.url)
        opened = Connections(settings)
        opened.cluster = Cluster(ClusterAccess(server.url, ca_pem=""))
        yield opened
        opened.labs.close()
        opened.publisher.close()


@pytest.fixture
def cleaning(connections: Connections, database: Database, broker: Broker, bucket: Bucket) -> Cleaning:
    """Cleanups in this process; the brake is out of the way until a test sets it."""
    found = Cleaning(connections, database, broker, bucket)
    found.set()
    return found


@pytest.fixture
def checking(connections: Connections, database: Database, cluster: FakeCluster, bucket: Bucket) -> Checking:
    """Health checks in this process."""
    return Checking(connections, database, cluster, bucket)


@pytest.fixture
def synced(
    connections: Connections,
    between_looks: Actions,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Sync:
    """Syncs in this process; of the pauses that `between_looks` replaces, the last is for lost requests."""
    monkeypatch.setattr(jobs.verify.queues, "LOOK_S", 0.0)
    return Sync(connections)


@pytest.fixture
def lab(database: Database) -> int:
    """A PENDING lab."""
    return database.add_lab()


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def celery_version(request: pytest.FixtureRequest) -> CeleryVersion:
    """Each Celery that is supported, the oldest and the newest."""
    version: CeleryVersion = request.param
    return version


@pytest.fixture
def webhook() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


@pytest.fixture
def platform(broker: Broker, database: Database, webhook: Receiver) -> Platform:
    return Platform(broker, database, webhook)


@pytest.fixture
def notifier(publisher: Publisher, webhook: Receiver) -> Notifier:
    return make_notifier(publisher, webhook)


@pytest.fixture
def sweeper(
    platform: Platform, containers: Containers, monkeypatch: pytest.MonkeyPatch
) -> pytest.MonkeyPatch:
    """The environment of `python -m cronjobs outbox` in this process."""
    for name, value in {**containers.environ, **webhook_environ(platform.webhook)}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture
def command(sweeper: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of `python -m cronjobs` in this process; its log stays pytest's."""
    sweeper.setattr("jobs.logs.configure", lambda _level: None)
    return sweeper
