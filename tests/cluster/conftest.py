"""A namespace, vhost, database and bucket of each module's own on the running cluster, without KEDA.

The modules run their own containers, as processes, so that they can run beside each other and beside
integration tests. What measures times, or takes away a part that all share, is in tests/e2e.
"""

from __future__ import annotations

from tests.support.cluster.admission import manifests, unguarded_namespace  # noqa: F401  # fixtures
from tests.support.cluster.node_room import node_room, whole_node  # noqa: F401  # fixtures
from tests.support.cluster.own_platform import own_namespace, own_platform  # noqa: F401  # fixtures
