"""Cases of tasks that fail for the platform around them, or for what they ask."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from dispatcher.broker import topology
from jobs.config.manifests import NETWORK_POLICY_TEMPLATE, POD_TEMPLATE
from jobs.config.stored import SETTINGS
from jobs.failures import Failure
from tests.support.cluster.own_namespace import KUBECONFIG_OBJECT, kubectl
from tests.support.containers.container import free_port
from tests.support.database.postgres import with_database
from tests.support.factories import create_kwargs, make_wire
from tests.support.labs.failing import Case, Scene, change_container, publish_create
from tests.support.waiting import eventually_equal

NOBODY = f"127.0.0.1:{free_port()}"
Act = Callable[[Scene], object]


def _store(key: str, content: bytes) -> Act:
    return lambda scene: scene.bucket.put(key, content)


def _without(key: str) -> Act:
    return lambda scene: scene.bucket.client.remove_object(bucket_name=scene.bucket.name, object_name=key)


def _kubeconfig(user: dict[str, str] | None = None, **cluster: Any) -> Act:
    """Put a kubeconfig in place whose user and cluster say this instead."""

    def change(scene: Scene) -> None:
        config = json.loads(scene.platform.namespace.kubeconfig)
        config["users"][0]["user"] = user or config["users"][0]["user"]
        config["clusters"][0]["cluster"] |= cluster
        scene.bucket.put(KUBECONFIG_OBJECT, json.dumps(config).encode())

    return change


def _as_operator(scene: Scene) -> None:
    """Give the job all rights, in a namespace that is not there."""
    config = kubectl("config", "view", "--raw", "--flatten", "--minify")
    scene.bucket.put(KUBECONFIG_OBJECT, config.encode())


def _wrong_database(scene: Scene) -> None:
    scene.environ["DATABASE_URL"] = with_database(os.environ["DATABASE_URL"], "postgres")


def _publish_body(body: bytes, **headers: Any) -> Callable[[Scene], str]:
    def publish(scene: Scene) -> str:
        _, wire = make_wire()
        scene.platform.broker.publish(topology.QUEUE_NORMAL, body, headers={**wire, **headers})
        return str(wire["id"])

    return publish


def _publish_follow_up(scene: Scene) -> str:
    body = json.dumps([[], create_kwargs(lab_instance_id=scene.lab), {"chain": [1]}]).encode()
    return _publish_body(body)(scene)


def _publish_unknown_lab(scene: Scene) -> str:
    return scene.platform.broker.publish_task(kwargs=create_kwargs(lab_instance_id=10**12))


def _publish_cancelled(scene: Scene) -> str:
    task_id = publish_create(scene)
    scene.platform.database.rows("INSERT INTO task_cancellations (task_id) VALUES (%s)", task_id)
    return task_id


def _publish_expiring(scene: Scene) -> str:
    soon = datetime.now(timezone.utc) + timedelta(seconds=1)
    kwargs = create_kwargs(lab_instance_id=scene.lab, docker_image=scene.image)
    task_id = scene.platform.broker.publish_task(kwargs=kwargs, expires=soon)
    eventually_equal(lambda: scene.platform.broker.depth(topology.QUEUE_LOW), 1)
    return task_id


def _publish_crashing(scene: Scene) -> str:
    """Give the message back as often as containers may crash at it."""
    task_id = publish_create(scene)
    channel = scene.platform.broker.channel()
    for _ in range(topology.DELIVERY_LIMIT + 1):
        method, _, _ = channel.basic_get(topology.QUEUE_NORMAL)
        if method is not None:
            channel.basic_reject(method.delivery_tag, requeue=True)
    channel.connection.close()
    eventually_equal(lambda: scene.platform.broker.depth(topology.QUEUE_LOW), 1)
    return task_id


# A failure that leaves the cluster out of reach leaves its message too: nobody could look for the lab's
# objects, and somebody has to.
TASKS: dict[str, Case] = {
    # Services that do not answer.
    "the database is away": Case(
        failure=Failure.DATABASE_AWAY,
        environ={"DATABASE_URL": f"postgresql://u:p@{NOBODY}/x"},
        says="Connection refused",
        recorded=False,
    ),
    "the cluster is away": Case(
        failure=Failure.CLUSTER_AWAY,
        before=_kubeconfig(server=f"https://{NOBODY}"),
        says="Connection refused",
    ),
    "the store is away": Case(
        failure=Failure.STORE_AWAY,
        environ={"S3_ENDPOINT": f"http://{NOBODY}"},
        says=f"GET {SETTINGS}",
    ),
    # Rights.
    "the database has no tables": Case(
        failure=Failure.DATABASE_REFUSES,
        before=_wrong_database,
        says='relation "task_ledger" does not exist',
        recorded=False,
        kept=True,
    ),
    "the store refuses the key": Case(
        failure=Failure.STORE_REFUSES_ACCESS,
        environ={"S3_SECRET_KEY": "wrong"},
        values={"key": SETTINGS},
        says=f"GET {SETTINGS}: 403",
        kept=True,
    ),
    "a right is missing": Case(
        failure=Failure.CLUSTER_REFUSES_ACCESS,
        environ={"LAB_NAMESPACE": "default"},
        says='cannot get resource "pods"',
        kept=True,
    ),
    "the token is nobody's": Case(
        failure=Failure.CLUSTER_REFUSES_ACCESS,
        before=_kubeconfig({"token": "nobody"}),
        says="401 Unauthorized",
        kept=True,
    ),
    "there is no access to the cluster": Case(
        failure=Failure.CLUSTER_ACCESS_MISSING,
        environ={"KUBECONFIG_OBJECT": ""},
        says="No such file or directory",
        kept=True,
    ),
    "the kubeconfig runs a program": Case(
        failure=Failure.KUBECONFIG_INVALID,
        before=_kubeconfig({"exec": "sh"}),
        says="exec refused; allowed are",
        kept=True,
    ),
    "the certificate is none": Case(
        failure=Failure.CERTIFICATES_INVALID,
        before=_kubeconfig(
            None, **{"certificate-authority-data": base64.b64encode(b"no certificate").decode()}
        ),
        says="cadata does not contain a certificate",
        kept=True,
    ),
    "the namespace is not there": Case(
        failure=Failure.CLUSTER_REFUSES_LAB,
        before=_as_operator,
        environ={"LAB_NAMESPACE": "no-such-namespace"},
        says='namespaces "no-such-namespace" not found',
    ),
    # Configuration.
    "the template is missing": Case(
        failure=Failure.CONFIGURATION_MISSING,
        before=_without(POD_TEMPLATE),
        values={"key": POD_TEMPLATE},
        says=f"GET {POD_TEMPLATE}: 404",
    ),
    "the bucket is missing": Case(
        failure=Failure.BUCKET_MISSING,
        environ={"S3_BUCKET": "no-such-bucket"},
        values={"bucket": "no-such-bucket"},
        says="NoSuchBucket",
        kept=True,
    ),
    "the settings are missing": Case(
        failure=Failure.CONFIGURATION_MISSING,
        before=_without(SETTINGS),
        values={"key": SETTINGS},
        says=f"GET {SETTINGS}: 404",
    ),
    "the settings have an unknown key": Case(
        failure=Failure.TEMPLATE_INVALID,
        settings={"colour": "blue"},
        says=f"{SETTINGS} colour: unknown key; allowed are allowed_images",
    ),
    "a template is not YAML": Case(
        failure=Failure.TEMPLATE_INVALID,
        before=_store(POD_TEMPLATE, b"kind: [Pod"),
        says=f"{POD_TEMPLATE} is not YAML",
    ),
    "a template has an unknown placeholder": Case(
        failure=Failure.TEMPLATE_INVALID,
        pod=change_container(workingDir="${home}"),
        says="uses unknown ${home}; allowed are",
    ),
    "a template of another kind": Case(
        failure=Failure.TEMPLATE_INVALID,
        before=_store(NETWORK_POLICY_TEMPLATE, b"kind: Secret"),
        says="must give a Pod, a Service, a NetworkPolicy, not Pod, Service, Secret",
    ),
    "a bug": Case(
        failure=Failure.INTERNAL_ERROR,
        module="tests.support.containers.odd_job",
        environ={"TEST_ODDITY": "bug"},
        says="ZeroDivisionError: a bug at rendered",
        kept=True,
        outcome="dead_lettered",
    ),
    "a container that crashes again and again": Case(
        failure=Failure.CONTAINER_CRASHED,
        publish=_publish_crashing,
        queue=topology.QUEUE_LOW,
        says="delivery limit of the queue",
        kept=True,
    ),
    # The request.
    "an image that is on no list": Case(
        failure=Failure.IMAGE_NOT_ALLOWED,
        image="docker.io/library/alpine:3",
        settings={"allowed_images": ["registry.gitlab.com/autolabs/labs/*"]},
        values={"allowed": "registry.gitlab.com/autolabs/labs/*"},
        says="allowed_images",
    ),
    "more cpu than a lab may have": Case(
        failure=Failure.RESOURCES_TOO_LARGE,
        payload={"resources": {"cpu": "9"}},
        values={"name": "cpu", "asked": "9", "most": "2"},
        says="max_resources.cpu",
    ),
    "an argument of the wrong type": Case(
        failure=Failure.REQUEST_INVALID,
        payload={"lab_id": "seven"},
        values={"problem": f"lab_id: 'seven' is not allowed; it must be an integer from 1 to {2**63 - 1}"},
        says="",
        kept=True,
        outcome="dead_lettered",
    ),
    "a follow-up": Case(
        failure=Failure.FOLLOW_UP_UNSUPPORTED,
        publish=_publish_follow_up,
        values={"unsupported": "chain"},
        says="",
        kept=True,
        outcome="dead_lettered",
    ),
    "a message that is no JSON": Case(
        failure=Failure.MESSAGE_UNREADABLE,
        publish=_publish_body(b"hello"),
        values={"problem": "body is not JSON: Expecting value: line 1 column 1 (char 0)"},
        says="",
        kept=True,
        outcome="dead_lettered",
        status="PENDING",
    ),
    "a lab that is not in the database": Case(
        failure=Failure.LAB_UNKNOWN,
        publish=_publish_unknown_lab,
        values={"lab_instance_id": 10**12},
        says="ahead of the backend's commit",
    ),
    "a task that was cancelled": Case(
        failure=Failure.CANCELLED,
        publish=_publish_cancelled,
        reads="The start of this lab was cancelled.",
        says="",
        outcome="revoked",
        status="STOPPED",
    ),
    "a task that ran out": Case(
        failure=Failure.EXPIRED,
        publish=_publish_expiring,
        queue=topology.QUEUE_LOW,
        says="expired in its queue",
        kept=True,
        outcome="revoked",
    ),
}
