"""Labs as a create leaves them, made without one: objects of the shipped templates, rows in bulk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache

from dispatcher.tasks import CREATE_LAB_POD, CreateLabPod
from jobs.cluster.client import Manifest
from jobs.config.lab_settings import LabSettings
from jobs.config.manifests import NETWORK_POLICY_TEMPLATE, POD_TEMPLATE, LabManifests, make_lab_manifests
from jobs.config.settings_document import parse_document
from jobs.config.stored import DEFAULTS, SETTINGS
from tests.support.cluster.bulk_api import BulkApi
from tests.support.cluster.fake_nodes import FakeNodes
from tests.support.cluster.own_namespace import OwnNamespace
from tests.support.database.postgres import Database

LAB_ID, STUDENT_ID = 7, 42
#: kube-proxy leaves a Service alone that another proxy serves.
_NO_PROXY = {"service.kubernetes.io/service-proxy-name": "none"}


def lab_manifests(lab_instance_id: int, namespace: str) -> LabManifests:
    """Return the objects of a lab of the demo image, without the owner of the last two."""
    settings, pod_template, policy_template = _shipped()
    payload = CreateLabPod(
        lab_instance_id=lab_instance_id,
        lab_id=LAB_ID,
        student_id=STUDENT_ID,
        docker_image=os.environ["LAB_IMAGE"],
    )
    return make_lab_manifests(
        payload,
        settings,
        namespace=namespace,
        pod_template=pod_template,
        network_policy_template=policy_template,
    )


@cache
def _shipped() -> tuple[LabSettings, bytes, bytes]:
    settings, *templates = (
        (DEFAULTS / name).read_bytes() for name in (SETTINGS, POD_TEMPLATE, NETWORK_POLICY_TEMPLATE)
    )
    return parse_document(LabSettings, SETTINGS, settings), templates[0], templates[1]


def add_rows(database: Database, count: int) -> range:
    """Insert labs that are RUNNING for an hour, each with the ledger row of its create; return their ids."""
    name = lab_manifests(1, "labs").pod["metadata"]["name"]
    first, last = database.rows(
        "WITH made AS (INSERT INTO lab_instances"
        " (lab_id, student_id, status, connection_url, started_at, created_at, updated_at)"
        " SELECT %s, %s, 'RUNNING', 'http://198.18.0.1:8080/', since, since, since"
        " FROM generate_series(1, %s), (SELECT now() - interval '1 hour' AS since) AS moment RETURNING id)"
        " SELECT min(id) AS first, max(id) AS last FROM made",
        *(LAB_ID, STUDENT_ID, count),
    )[0].values()
    database.rows(
        "UPDATE lab_instances SET k8s_pod_name = replace(%s, '-1-', '-' || id || '-'),"
        " celery_task_id = gen_random_uuid()::text",
        name,
    )
    database.rows(
        "INSERT INTO task_ledger (task_id, task_name, lab_instance_id, attempt, redelivered, queue,"
        " claimed_at, finished_at, outcome, details)"
        " SELECT celery_task_id, %s, id, 1, false, 'celery.lab_operations', started_at, started_at,"
        " 'succeeded', '{}' FROM lab_instances",
        CREATE_LAB_POD,
    )
    database.rows("VACUUM ANALYZE")
    return range(int(first), int(last) + 1)


def add_objects(
    api: BulkApi, nodes: FakeNodes, namespace: OwnNamespace, labs: Iterable[int], *, timeout_s: float
) -> None:
    """Make Pod, Service and NetworkPolicy of each lab, the Pod on a fake node.

    The Services have no address and select nothing, and kube-proxy does not see them: the controllers would
    need ten minutes for ten thousand EndpointSlices, in which no Service of anybody else gets its own.
    """

    def add(lab: int) -> None:
        made = lab_manifests(lab, namespace.name)
        pod = api.call("POST", namespace.collections["Pod"], nodes.bound(made.pod))
        api.call("POST", namespace.collections["Service"], _owned(_unserved(made.service), pod))
        api.call("POST", namespace.collections["NetworkPolicy"], _owned(made.network_policy, pod))

    api.each(labs, add, timeout_s=timeout_s)


def not_running(api: BulkApi, namespace: OwnNamespace) -> bool:
    """Tell whether any Pod of the namespace is not Running."""
    query = {"fieldSelector": "status.phase!=Running", "limit": 1}
    return bool(api.call("GET", namespace.collections["Pod"], **query)["items"])


def _unserved(service: Manifest) -> Manifest:
    metadata = service["metadata"]
    spec = {key: value for key, value in service["spec"].items() if key != "selector"}
    spec["clusterIP"] = "None"
    return {**service, "spec": spec, "metadata": {**metadata, "labels": {**metadata["labels"], **_NO_PROXY}}}


def _owned(manifest: Manifest, pod: Manifest) -> Manifest:
    metadata = pod["metadata"]
    owner = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
    return {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [owner]}}
