"""Fixtures of a vhost, a database, a bucket and a namespace of a module's own, on the real servers.

`own_platform.containers` runs job containers against all four.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from jobs.config.lab_settings import LabSettings
from jobs.config.settings_document import parse_document
from jobs.config.stored import DEFAULTS, SETTINGS, upload_defaults
from tests.support.broker.rabbitmq import Broker
from tests.support.broker.vhost_pool import VhostPool
from tests.support.cluster.own_namespace import KUBECONFIG_OBJECT, OwnNamespace
from tests.support.containers.container import Containers
from tests.support.database.database_pool import DatabasePool
from tests.support.database.postgres import Database
from tests.support.lending import lent_database, lent_vhost
from tests.support.store import Bucket


def default_settings(**changes: object) -> bytes:
    """Return the settings object of a fresh platform, with $LAB_IMAGE allowed and these keys changed."""
    content = yaml.safe_load((DEFAULTS / SETTINGS).read_bytes())
    content["allowed_images"] = [*content["allowed_images"], os.environ["LAB_IMAGE"]]
    return yaml.safe_dump(content | changes).encode()


@dataclass
class OwnPlatform:
    """One broker vhost, database, bucket and namespace, and containers that know no others."""

    broker: Broker
    database: Database
    bucket: Bucket
    namespace: OwnNamespace
    containers: Containers = field(repr=False)

    def set_lab_settings(self, **changes: object) -> LabSettings:
        """Store the settings of labs, changed as told."""
        content = default_settings(**changes)
        self.bucket.put(SETTINGS, content)
        return parse_document(LabSettings, SETTINGS, content)

    def evidence(self) -> str:
        parts = (self.broker, self.database, self.namespace, self.containers)
        return "\n".join(part.evidence() for part in parts)


def environ_of(broker: Broker, database: Database, bucket: Bucket, namespace: OwnNamespace) -> dict[str, str]:
    """Return the settings of a container that works for these alone."""
    return {
        "PATH": os.environ["PATH"],
        "AMQP_URL": broker.url,
        "DATABASE_URL": database.url,
        **bucket.environ,
        "LAB_NAMESPACE": namespace.name,
        "KUBECONFIG_OBJECT": KUBECONFIG_OBJECT,
        "CELERY_TASK_RETRY_JITTER": "false",
    }


@pytest.fixture(scope="module")
def own_namespace() -> Iterator[OwnNamespace]:
    """A namespace of the module in the real cluster."""
    namespace = OwnNamespace.create()
    yield namespace
    namespace.remove()


@contextmanager
def platform_in(
    namespace: OwnNamespace,
    vhost_pool: VhostPool,
    database_pool: DatabasePool,
    borrower: pytest.Item | pytest.Collector,
    folder: Path,
) -> Iterator[OwnPlatform]:
    """Yield a platform whose containers log to the folder; its labs have the default settings."""
    bucket = Bucket(*(os.environ[name] for name in ("S3_ENDPOINT", "S3_ACCESS_KEY", "S3_SECRET_KEY")))
    with lent_vhost(vhost_pool, borrower) as broker, lent_database(database_pool, borrower) as database:
        containers = Containers(environ_of(broker, database, bucket, namespace), folder, forks=True)
        try:
            upload_defaults(bucket.settings)
            bucket.put(KUBECONFIG_OBJECT, namespace.kubeconfig)
            yield OwnPlatform(broker, database, bucket, namespace, containers)
        finally:
            containers.end()
            bucket.remove()


@pytest.fixture(scope="module")
def own_platform(
    own_namespace: OwnNamespace,
    vhost_pool: VhostPool,
    database_pool: DatabasePool,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OwnPlatform]:
    """A platform of the module: one broker vhost, database and bucket for all its tests."""
    folder = Path(tmp_path_factory.mktemp("containers"))
    with platform_in(own_namespace, vhost_pool, database_pool, request.node, folder) as platform:
        platform.set_lab_settings()
        yield platform
