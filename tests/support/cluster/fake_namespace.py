"""A platform of a module's own as in own_platform.py, but its cluster is a scripted API server.

Containers reach it as they reach a real one: by a kubeconfig in the bucket, over TLS.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jobs.cluster.access import kubeconfig_access
from jobs.cluster.client import Cluster
from tests.support.broker.tcp_proxy import TcpProxy
from tests.support.broker.vhost_pool import VhostPool
from tests.support.certificate import make_certificate
from tests.support.cluster.fake_cluster import FakeCluster
from tests.support.cluster.own_namespace import OwnNamespace
from tests.support.cluster.own_platform import OwnPlatform, platform_in
from tests.support.database.database_pool import DatabasePool
from tests.support.http_server import ScriptedServer


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
    vhost_pool: VhostPool,
    database_pool: DatabasePool,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OwnPlatform]:
    folder = Path(tmp_path_factory.mktemp("containers"))
    with platform_in(own_namespace, vhost_pool, database_pool, request.node, folder) as platform:
        yield platform


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
