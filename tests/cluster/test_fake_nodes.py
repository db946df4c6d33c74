"""Fake nodes as other tests and the benchmark use them: a lab's Pod is Ready there, and nothing stays.

What happens when one of them goes away is in test_health_on_the_cluster.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster.client import Manifest
from tests.support.cluster import kwok
from tests.support.cluster.bulk_api import BulkApi
from tests.support.cluster.fake_nodes import HANGS_S, LABEL, NODES, FakeNodes, remove_left_over
from tests.support.cluster.own_namespace import OwnNamespace
from tests.support.containers.container import ROOT
from tests.support.labs.many_labs import lab_manifests
from tests.support.waiting import eventually, eventually_equal

#: Building kwok takes two to four minutes where nobody did (`python -m tests.support.cluster.kwok`).
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def built(pytestconfig: pytest.Config) -> Path:
    """kwok, with the line that says that it is being built where people see it."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        return kwok.binary()


@pytest.fixture(scope="module")
def nodes(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeNodes]:
    with FakeNodes.create(2, tmp_path_factory.mktemp("nodes")) as nodes:
        yield nodes


@pytest.fixture(autouse=True)
def nothing_stays(own_namespace: OwnNamespace) -> Iterator[None]:
    """What a failed test leaves is none of the next."""
    yield
    if left := [f"{item['kind']}/{item['metadata']['name']}" for item in own_namespace.objects()]:
        own_namespace.kubectl("delete", *left, "--grace-period=0", "--force", "--ignore-not-found")


@pytest.fixture
def api() -> Iterator[BulkApi]:
    with BulkApi() as api:
        yield api


def start(nodes: FakeNodes, namespace: OwnNamespace, lab: int, node: str = "") -> str:
    """Create the Pod of a lab on a fake node, wait until it is Ready, and return its name."""
    pod = nodes.bound(lab_manifests(lab, namespace.name).pod, node)
    namespace.kubectl("create", "--filename=-", stdin=pod)
    name = str(pod["metadata"]["name"])
    eventually_equal(lambda: ready(namespace, name), "True", HANGS_S)
    return name


def find(namespace: OwnNamespace, name: str) -> Manifest:
    found = namespace.cluster.get(f"{namespace.collections['Pod']}/{name}")
    assert found is not None
    return found


def ready(namespace: OwnNamespace, name: str) -> str:
    conditions: list[dict[str, Any]] = find(namespace, name)["status"].get("conditions", [])
    return next((one["status"] for one in conditions if one["type"] == "Ready"), "")


def fake_nodes(api: BulkApi) -> list[str]:
    return [node["metadata"]["name"] for node in api.items(NODES, labelSelector=LABEL)]


@pytest.mark.usefixtures("built")
def test_a_pod_is_ready_on_a_fake_node_and_goes_with_it(
    own_namespace: OwnNamespace, api: BulkApi, tmp_path: Path
) -> None:
    with FakeNodes.create(2, tmp_path) as nodes:
        names = [start(nodes, own_namespace, lab) for lab in (1, 2)]
        assert {find(own_namespace, name)["spec"]["nodeName"] for name in names} == set(nodes.names)
        assert find(own_namespace, names[0])["status"]["phase"] == "Running"
    assert own_namespace.objects() == []
    assert not set(nodes.names) & set(fake_nodes(api))


def test_a_pod_that_is_deleted_ends_by_itself(nodes: FakeNodes, own_namespace: OwnNamespace) -> None:
    name = start(nodes, own_namespace, 3)
    own_namespace.kubectl("delete", "pod", name, "--wait=false")
    eventually(lambda: not own_namespace.objects(), HANGS_S, what=f"{name} is gone")


def test_a_pod_that_may_be_scheduled_anywhere_is_not_scheduled_there(
    nodes: FakeNodes, own_namespace: OwnNamespace
) -> None:
    pod = lab_manifests(7, own_namespace.name).pod
    selector = {"kubernetes.io/hostname": nodes.names[0]}
    only_there = {**pod, "spec": {**pod["spec"], "nodeSelector": selector}}
    own_namespace.kubectl("create", "--filename=-", stdin=only_there)
    name = str(pod["metadata"]["name"])

    def refusal() -> str:
        conditions = find(own_namespace, name)["status"].get("conditions", [])
        return " ".join(one.get("message", "") for one in conditions if one["type"] == "PodScheduled")

    eventually(lambda: "untolerated taint" in refusal(), HANGS_S, what="the Pod finds no node")


def test_the_next_run_removes_what_a_killed_one_left(
    built: Path, own_namespace: OwnNamespace, api: BulkApi, tmp_path: Path
) -> None:
    """The killed one is another process; its kwok dies with it, and its Pod stays."""
    pod = lab_manifests(8, own_namespace.name).pod
    (tmp_path / "pod.json").write_text(json.dumps(pod))
    program = (
        "import json, sys; from pathlib import Path; from tests.support.cluster.fake_nodes import FakeNodes\n"
        "folder = Path(sys.argv[1]); nodes = FakeNodes.create(1, folder)\n"
        "pod = nodes.bound(json.loads((folder / 'pod.json').read_text()))\n"
        "nodes.api.call('POST', f\"/api/v1/namespaces/{pod['metadata']['namespace']}/pods\", pod)\n"
        "print(nodes.kwok.popen.pid, nodes.names[0], flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        pid, name = other.stdout.readline().split()
        remove_left_over(api)
        assert name in fake_nodes(api), "it belongs to a process that runs"
        other.kill()
    eventually(lambda: not Path(f"/proc/{pid}/exe").exists(), HANGS_S, what="kwok dies with its starter")
    assert own_namespace.names_of(8) != []
    remove_left_over(api)
    assert name not in fake_nodes(api)
    assert own_namespace.objects() == []
