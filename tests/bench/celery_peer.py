"""The peer: a warm Celery worker that creates the same lab with the kubernetes package.

Plain client code as a team would write it first: create Pod, Service and NetworkPolicy from the very
manifests of our templates, watch until Ready, UPDATE the row, acks_late.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import psycopg2
from celery import Celery
from kubernetes import client, config, watch

from dispatcher.tasks import CreateLabPod
from jobs.config.lab_settings import LabSettings
from jobs.config.manifests import NETWORK_POLICY_TEMPLATE, POD_TEMPLATE, make_lab_manifests
from jobs.config.settings_document import parse_document
from jobs.config.stored import DEFAULTS, SETTINGS

QUEUE = "bench.celery_peer"

app = Celery("peer", broker=os.environ.get("AMQP_URL"))
app.conf.update(
    task_default_queue=QUEUE,
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
    broker_transport_options={"confirm_publish": True},
    worker_hijack_root_logger=False,
)


@cache
def _clients() -> tuple[client.CoreV1Api, client.NetworkingV1Api, Any]:
    api = config.new_client_from_config(os.environ["KUBECONFIG"])
    database = psycopg2.connect(os.environ["DATABASE_URL"])
    database.autocommit = True
    return client.CoreV1Api(api), client.NetworkingV1Api(api), database


@cache
def _templates() -> tuple[bytes, bytes, bytes]:
    return tuple(
        (Path(DEFAULTS) / name).read_bytes() for name in (SETTINGS, POD_TEMPLATE, NETWORK_POLICY_TEMPLATE)
    )  # type: ignore[return-value]


@app.task(name="celery_workers.create_lab_pod")  # type: ignore[untyped-decorator]
def create_lab_pod(**kwargs: Any) -> None:
    core, networking, database = _clients()
    settings, pod_template, policy_template = _templates()
    payload = CreateLabPod(**kwargs)
    lab = make_lab_manifests(
        payload,
        parse_document(LabSettings, SETTINGS, settings),
        namespace="labs",
        pod_template=pod_template,
        network_policy_template=policy_template,
    )
    pod = core.create_namespaced_pod("labs", lab.pod)
    service = core.create_namespaced_service("labs", lab.service)
    networking.create_namespaced_network_policy("labs", lab.network_policy)
    stream = watch.Watch()
    for event in stream.stream(
        core.list_namespaced_pod,
        "labs",
        field_selector=f"metadata.name={pod.metadata.name}",
        timeout_seconds=60,
    ):
        conditions = event["object"].status.conditions or []
        if any(c.type == "Ready" and c.status == "True" for c in conditions):
            stream.stop()
    with database.cursor() as cursor:
        cursor.execute(
            "UPDATE lab_instances SET status = 'RUNNING', k8s_pod_name = %s, connection_url = %s,"
            " started_at = clock_timestamp(), updated_at = now() WHERE id = %s AND status = 'PENDING'",
            (pod.metadata.name, f"http://{service.spec.cluster_ip}:8080/", payload.lab_instance_id),
        )
