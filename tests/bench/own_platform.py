"""A platform for one benchmark, on the running servers: vhost, database, bucket, namespace without quota.

The namespace carries the names of the others and who made it, so that the next benchmark can remove what one
left that was killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from dispatcher.migrations.migrate import upgrade
from jobs.cluster.lab_objects import collections
from jobs.config.stored import upload_defaults
from tests.support.broker.rabbitmq import Broker, ManagementApi
from tests.support.cluster.bulk_api import BulkApi
from tests.support.cluster.own_namespace import KUBECONFIG_OBJECT, OwnNamespace
from tests.support.cluster.own_platform import OwnPlatform, environ_of
from tests.support.cluster.run_marks import MARK, is_left_over, own_mark
from tests.support.containers.container import Containers
from tests.support.database.postgres import Server
from tests.support.store import Bucket

#: Label of the namespace.
LABEL = "autolabs.io/bench"
#: Annotations of the namespace.
_VHOST, _DATABASE, _BUCKET = "autolabs.io/vhost", "autolabs.io/database", "autolabs.io/bucket"
_NAMESPACES = "/api/v1/namespaces"


@contextmanager
def own_platform(api: BulkApi, folder: Path) -> Iterator[OwnPlatform]:
    """Yield it; it is gone afterwards, with all that is in it. Logs go to the folder."""
    with ExitStack() as stack:
        namespace = OwnNamespace.create()
        stack.callback(remove_namespace, api, namespace.name)

        def note(**metadata: dict[str, str]) -> None:
            api.call("PATCH", f"{_NAMESPACES}/{namespace.name}", {"metadata": metadata})

        note(labels={LABEL: "true"}, annotations={MARK: own_mark()})
        namespace.kubectl("delete", "resourcequota", "--all")  # it ends at a thousand labs
        broker = Broker.create(os.environ["AMQP_URL"], os.environ["RABBITMQ_API_URL"])
        stack.callback(broker.remove)
        database = Server(os.environ["DATABASE_URL"]).create()
        stack.callback(database.drop)
        bucket = _bucket()
        stack.callback(bucket.remove)
        note(annotations={_VHOST: broker.vhost, _DATABASE: database.name, _BUCKET: bucket.name})
        broker.declare()
        upgrade(database.url)
        upload_defaults(bucket.settings)
        bucket.put(KUBECONFIG_OBJECT, namespace.kubeconfig)
        containers = Containers(environ_of(broker, database, bucket, namespace), folder)
        platform = OwnPlatform(broker, database, bucket, namespace, containers)
        platform.set_lab_settings()
        yield platform


def remove_namespace(api: BulkApi, name: str) -> None:
    """Remove a namespace and what is in it; return when the objects of labs are gone."""
    # What a Pod owns goes first, or the garbage collector gets a task for each.
    for kind in ("NetworkPolicy", "Service", "Pod"):
        api.delete_all(collections(name)[kind])
    api.call("DELETE", f"{_NAMESPACES}/{name}")


def remove_left_over(api: BulkApi) -> None:
    """Remove the platforms of benchmarks that were killed."""
    for namespace in api.items(_NAMESPACES, labelSelector=LABEL):
        metadata = namespace["metadata"]
        if not is_left_over(namespace) or "deletionTimestamp" in metadata:
            continue
        names = metadata["annotations"]
        if vhost := names.get(_VHOST):
            found = ManagementApi(os.environ["RABBITMQ_API_URL"])
            if vhost in (one["name"] for one in found.call("GET", "/vhosts")):
                found.call("DELETE", f"/vhosts/{vhost}")
        if database := names.get(_DATABASE):
            Server(os.environ["DATABASE_URL"]).drop(database)
        if bucket := names.get(_BUCKET):
            _bucket(bucket).remove()
        remove_namespace(api, metadata["name"])


def _bucket(name: str = "") -> Bucket:
    bucket = Bucket(*(os.environ[word] for word in ("S3_ENDPOINT", "S3_ACCESS_KEY", "S3_SECRET_KEY")))
    if name:
        bucket.settings = replace(bucket.settings, bucket=name)
    return bucket
