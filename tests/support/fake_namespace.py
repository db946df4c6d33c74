"""A platform of a module's own as in tests/support/own_platform.py, but its cluster is a scripted API server.

Containers reach it as they reach a real one: by a kubeconfig in the bucket, over TLS.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jobs.cluster import Cluster
from jobs.cluster_access import kubeconfig_access
from jobs.configs import upload_defaults
from tests.support.certificate import make_certificate
from tests.support.container import Containers
from tests.support.fake_cluster import FakeCluster
from tests.support.http_server import ScriptedServer
from tests.support.own_namespace import KUBECONFIG_OBJECT, OwnNamespace
from tests.support.own_platform import OwnPlatform, environ_of
from tests.support.postgres import Server
from tests.support.rabbitmq import Broker
from tests.support.store import Bucket
from tests.support.tcp_proxy import TcpProxy


@dataclass(frozen=True)
class FakeNamespace(OwnNamespace):
    """The namespace `labs` of a scripted API server, which lets everybody do everything."""

    api: FakeCluster = field(repr=False)

    def evidence(self) -> str:
        return "\n".join(self.api.objects)


@pytest.fixture(scope="module")
def own_namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeNamespace]:
    certificate = make_certificate(tmp_path_factory.mktemp("tls"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    api = FakeCluster()
    with ScriptedServer(api) as server, TcpProxy.to(server.url, tls=context) as proxy:
        api.serve_at(server.url)
        kubeconfig = _kubeconfig(f"https://127.0.0.1:{proxy.port}", certificate.with_suffix(".crt"))
        yield FakeNamespace("labs", kubeconfig, Cluster(kubeconfig_access(kubeconfig)), api)


@pytest.fixture(scope="module")
def own_platform(
    own_namespace: FakeNamespace,
    database_server: Server,
    migrated_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OwnPlatform]:
    broker = Broker.create(os.environ["AMQP_URL"], os.environ["RABBITMQ_API_URL"])
    database = database_server.create(template=migrated_template)
    bucket = Bucket(*(os.environ[name] for name in ("S3_ENDPOINT", "S3_ACCESS_KEY", "S3_SECRET_KEY")))
    environ = environ_of(broker, database, bucket, own_namespace)
    containers = Containers(environ, Path(tmp_path_factory.mktemp("containers")), forks=True)
    try:
        broker.declare()
        upload_defaults(bucket.settings)
        bucket.put(KUBECONFIG_OBJECT, own_namespace.kubeconfig)
        yield OwnPlatform(broker, database, bucket, own_namespace, containers)
    finally:
        containers.end()
        bucket.remove()
        database.drop()
        broker.remove()


def _kubeconfig(server: str, certificate: Path) -> bytes:
    cluster = {
        "server": server,
        "certificate-authority-data": base64.b64encode(certificate.read_bytes()).decode(),
    }
    config = {
        "clusters": [{"name": "fake", "cluster": cluster}],
        "users": [{"name": "fake", "user": {"token": "anybody"}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        "current-context": "fake",
    }
    return json.dumps(config).encode()
