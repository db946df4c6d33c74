"""A vhost, a database and a bucket of its own for each test that asks for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from celery import Celery
from sqlalchemy import Engine

from dispatcher import celery_config
from dispatcher.database import upgrade
from dispatcher.engine import make_engine
from dispatcher.publisher import Publisher
from jobs.configs import upload_defaults
from jobs.labs import LabStore
from tests.support.container import Containers
from tests.support.outbox import Arrivals
from tests.support.postgres import Database, Server
from tests.support.rabbitmq import Broker
from tests.support.store import Bucket


@pytest.fixture
def bare_broker() -> Iterator[Broker]:
    """An empty vhost."""
    broker = Broker.create(os.environ["AMQP_URL"], os.environ["RABBITMQ_API_URL"])
    yield broker
    broker.remove()


@pytest.fixture
def broker(bare_broker: Broker) -> Broker:
    """A vhost with the topology."""
    bare_broker.declare()
    return bare_broker


@pytest.fixture
def publisher(broker: Broker) -> Iterator[Publisher]:
    publisher = Publisher(broker.settings, name="test-publisher")
    yield publisher
    publisher.close()


@pytest.fixture(scope="session")
def database_server() -> Server:
    return Server(os.environ["DATABASE_URL"])


@pytest.fixture
def bare_database(database_server: Server) -> Iterator[Database]:
    """An empty database."""
    database = database_server.create()
    yield database
    database.drop()


@pytest.fixture(scope="session")
def migrated_template(database_server: Server) -> Iterator[str]:
    database = database_server.create()
    upgrade(database.url)
    yield database.name
    database.drop()


@pytest.fixture
def database(database_server: Server, migrated_template: str) -> Iterator[Database]:
    """A database with the tables."""
    database = database_server.create(template=migrated_template)
    yield database
    database.drop()


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
        "S3_ENDPOINT": bare_bucket.settings.endpoint,
        "S3_ACCESS_KEY": bare_bucket.settings.access_key,
        "S3_SECRET_KEY": bare_bucket.settings.secret_key,
        "S3_BUCKET": bare_bucket.name,
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
    app.close()
