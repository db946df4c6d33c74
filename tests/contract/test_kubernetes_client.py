"""Our requests to the API server and our quantities are those of the kubernetes package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes import client
from kubernetes.utils.quantity import parse_quantity as their_quantity

from dispatcher.quantities import parse_quantity
from jobs.cluster.access import ClusterAccess
from jobs.cluster.client import Cluster
from tests.support.http_server import Answer, Request, ScriptedServer

POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lab", "labels": {"a": "b"}}}
PODS = "/api/v1/namespaces/labs/pods"
LISTED = {"metadata": {"resourceVersion": "1"}, "items": []}


def theirs(api: client.CoreV1Api, call: str) -> Any:
    if call == "get":
        return api.read_namespaced_pod("lab", "labs")
    if call == "list":
        return api.list_namespaced_pod("labs", label_selector="a=b,c=d")
    if call == "create":
        return api.create_namespaced_pod(
            "labs", POD, field_manager="autolabs-jobs", field_validation="Strict"
        )
    if call == "apply":
        return api.patch_namespaced_pod(
            "lab", "labs", POD, field_manager="autolabs-jobs", field_validation="Strict"
        )
    options = client.V1DeleteOptions(
        api_version="v1",
        kind="DeleteOptions",
        grace_period_seconds=0,
        preconditions=client.V1Preconditions(uid="u1"),
        propagation_policy="Background",
    )
    return api.delete_namespaced_pod("lab", "labs", body=options)


OURS: dict[str, Callable[[Cluster], Any]] = {
    "get": lambda cluster: cluster.get(f"{PODS}/lab"),
    "list": lambda cluster: cluster.list_items(PODS, labelSelector="a=b,c=d"),
    "create": lambda cluster: cluster.create(PODS, POD),
    "apply": lambda cluster: cluster.apply(f"{PODS}/lab", POD),
    "delete": lambda cluster: cluster.delete(f"{PODS}/lab", uid="u1", grace_s=0),
}


def essence(request: Request) -> tuple[str, str, Any]:
    return request.method, request.path, request.json() if request.body else None


@pytest.mark.parametrize("call", OURS)
def test_both_clients_send_the_same_request(call: str) -> None:
    with ScriptedServer(
        lambda request: Answer(content=LISTED if "?label" in request.path else POD)
    ) as server:
        with client.ApiClient(client.Configuration(host=server.url)) as api_client:
            theirs(client.CoreV1Api(api_client), call)
        OURS[call](Cluster(ClusterAccess(server.url, ca_pem="")))
    their_request, our_request = server.requests
    assert essence(our_request) == essence(their_request)


@given(st.from_regex(r"[0-9]{1,9}(\.[0-9]{1,6})?(m|[kMGT]|[KMGT]i)?", fullmatch=True))
def test_a_quantity_is_the_same_amount_to_both(text: str) -> None:
    assert parse_quantity(text) == their_quantity(text)
