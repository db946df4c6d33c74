"""The peer: a health check as a team would write it first, with the kubernetes package.

`list` gets all Pods of the namespace at once, as the package's examples do; `get N` asks for the Pod of
each lab, of N labs alone. Either prints, as JSON, of how many labs how many are not Ready, and the seconds
that the cluster took for it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator

import psycopg2
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException


def running_labs(limit: int | None) -> dict[str, int]:
    """Return Pod name -> lab of the RUNNING labs."""
    database = psycopg2.connect(os.environ["DATABASE_URL"])
    with database.cursor() as cursor:
        statement = "SELECT k8s_pod_name, id FROM lab_instances WHERE status = 'RUNNING' ORDER BY id LIMIT %s"
        cursor.execute(statement, (limit,))
        return {str(name): int(lab) for name, lab in cursor.fetchall()}


def all_pods(core: client.CoreV1Api, namespace: str) -> Iterator[client.V1Pod]:
    """Yield them from one list."""
    yield from core.list_namespaced_pod(namespace, label_selector="lab_instance_id").items


def pods_by_name(core: client.CoreV1Api, namespace: str, names: dict[str, int]) -> Iterator[client.V1Pod]:
    """Yield them one by one."""
    for name in names:
        try:
            yield core.read_namespaced_pod(name, namespace)
        except ApiException as exc:
            if exc.status != 404:
                raise


def main(how: str, limit: int | None) -> None:
    """Look once."""
    core = client.CoreV1Api(config.new_client_from_config(os.environ["KUBECONFIG"]))
    labs, namespace = running_labs(limit), os.environ["LAB_NAMESPACE"]
    started = time.monotonic()
    pods = all_pods(core, namespace) if how == "list" else pods_by_name(core, namespace, labs)
    ready = {
        pod.metadata.name
        for pod in pods
        if any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions or [])
    }
    looked_s = time.monotonic() - started
    print(json.dumps({"labs": len(labs), "not_ready": len(labs.keys() - ready), "looked_s": looked_s}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
