"""Fake nodes as other tests and the benchmark use them: a lab's Pod is Ready there, and nothing stays."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster import Manifest
from tests.support import kwok
from tests.support.bulk_api import BulkApi
from tests.support.container import ROOT
from tests.support.fake_nodes import LABEL, NODES, FakeNodes, remove_left_over
from tests.support.many_labs import lab_manifests
from tests.support.own_namespace import OwnNamespace
from tests.support.waiting import eventually, eventually_equal

#: Building kwok on a fresh machine takes two to four minutes.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def built(pytestconfig: pytest.Config) -> Path:
    """kwok, with the line that says that it is being built where people see it."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        return kwok.binary()


@pytest.fixture
def nodes(built: Path, tmp_path: Path) -> Iterator[FakeNodes]:
    with FakeNodes.create(2, tmp_path) as nodes:
        yield nodes


@pytest.fixture
def api() -> Iterator[BulkApi]:
    with BulkApi() as api:
        yield api


def start(nodes: FakeNodes, namespace: OwnNamespace, lab: int, node: str = "") -> str:
    """Create the Pod of a lab on a fake node, wait until it is Ready, and return its name."""
    pod = nodes.bound(lab_manifests(lab, namespace.name).pod, node)
    namespace.kubectl("create", "--filename=-", stdin=pod)
    name = str(pod["metadata"]["name"])
    eventually_equal(lambda: ready(namespace, name), "True", 30)
    return name


def find(namespace: OwnNamespace, name: str) -> Manifest:
    return dict(json.loads(namespace.kubectl("get", "pod", name, "--output=json")))


def ready(namespace: OwnNamespace, name: str) -> str:
    conditions: list[dict[str, Any]] = find(namespace, name)["status"].get("conditions", [])
    return next((one["status"] for one in conditions if one["type"] == "Ready"), "")


def fake_nodes(api: BulkApi) -> list[str]:
    return [node["metadata"]["name"] for node in api.items(NODES, labelSelector=LABEL)]


def test_a_pod_is_ready_on_a_fake_node_and_goes_with_it(
    nodes: FakeNodes, own_namespace: OwnNamespace, api: BulkApi
) -> None:
    names = [start(nodes, own_namespace, lab) for lab in (1, 2)]
    assert {find(own_namespace, name)["spec"]["nodeName"] for name in names} == set(nodes.names)
    assert find(own_namespace, names[0])["status"]["phase"] == "Running"
    nodes.remove()
    assert own_namespace.objects() == []
    assert not set(nodes.names) & set(fake_nodes(api))


def test_a_pod_that_is_deleted_ends_by_itself(nodes: FakeNodes, own_namespace: OwnNamespace) -> None:
    name = start(nodes, own_namespace, 3)
    own_namespace.kubectl("delete", "pod", name, "--wait=false")
    eventually(lambda: not own_namespace.objects(), 20, what=f"{name} is gone")


def test_pods_of_a_node_that_goes_away_are_not_ready_and_those_of_another_are(
    nodes: FakeNodes, own_namespace: OwnNamespace
) -> None:
    lost, kept = nodes.names
    on_lost, on_kept = start(nodes, own_namespace, 4, lost), start(nodes, own_namespace, 5, kept)
    nodes.node_goes_away(lost)
    eventually_equal(lambda: ready(own_namespace, on_lost), "False", 30)
    assert find(own_namespace, on_lost)["status"]["phase"] == "Running"
    assert (nodes.ready(kept), ready(own_namespace, on_kept)) == ("True", "True")


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

    eventually(lambda: "untolerated taint" in refusal(), 20, what="the Pod finds no node")
    own_namespace.kubectl("delete", "pod", name)


def test_the_next_run_removes_what_a_killed_one_left(
    built: Path, own_namespace: OwnNamespace, api: BulkApi, tmp_path: Path
) -> None:
    """The killed one is another process; its kwok dies with it, and its Pod stays."""
    pod = lab_manifests(8, own_namespace.name).pod
    (tmp_path / "pod.json").write_text(json.dumps(pod))
    program = (
        "import json, sys; from pathlib import Path; from tests.support.fake_nodes import FakeNodes\n"
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
    eventually(lambda: not Path(f"/proc/{pid}/exe").exists(), 10, what="kwok dies with its starter")
    assert own_namespace.names_of(8) != []
    remove_left_over(api)
    assert name not in fake_nodes(api)
    assert own_namespace.objects() == []
