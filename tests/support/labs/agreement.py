"""Whether database, cluster and broker agree, when nothing is on its way any more.

It is told twice: by a comparison of its own, and by what `autolabs verify` finds.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from dispatcher.broker import topology
from jobs.cluster.client import Cluster, Manifest
from jobs.database.lab_store import LabStore
from jobs.verify.snapshot import Sources, find_differences
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.waiting import eventually_equal

#: Seconds after which deleted objects never go, on however slow a machine.
_GONE_S = 60
KINDS = ["NetworkPolicy", "Pod", "Service"]


def disagreements(platform: OwnPlatform) -> list[str]:
    """Return what differs, one sentence each; labs that are PENDING and messages that wait count too."""
    by_lab: dict[int, list[Manifest]] = defaultdict(list)
    for item in platform.namespace.objects():
        by_lab[int(item["metadata"]["labels"]["lab_instance_id"])].append(item)
    rows = platform.database.rows("SELECT id, status, k8s_pod_name FROM lab_instances ORDER BY id")
    found = [problem for row in rows for problem in _about_lab(row, by_lab.pop(row["id"], []))]
    found += [f"lab {lab} has objects but no row" for lab in by_lab]
    queues = (*topology.BINDINGS, topology.DEAD_LETTER_QUEUE)
    if not platform.broker.is_empty(*queues):
        found += [f"{platform.broker.depth(queue)} messages wait in {queue}" for queue in queues]
    return found


def wait_until_all_agree(platform: OwnPlatform) -> None:
    """Wait, as deleted objects take a moment to go; fails with what still differs."""
    nothing: list[str] = []
    eventually_equal(lambda: disagreements(platform), nothing, _GONE_S)
    assert verified(platform) == []


def verified(platform: OwnPlatform) -> list[str]:
    """Return what `autolabs verify` says of the platform, looking with the rights of a job."""
    labs = LabStore(platform.database.url, application_name="test-verify")
    namespace = platform.namespace
    try:
        sources = Sources(
            labs, Cluster(namespace.access), namespace.name, platform.broker.settings, grace_s=0
        )
        found = find_differences(sources, settle_s=0.5)
    finally:
        labs.close()
    return [f"{one.kind.value}: {one.object} {one.seen}" for one in found.differences]


def _about_lab(row: dict[str, Any], objects: list[Manifest]) -> list[str]:
    lab, status = f"lab {row['id']}", row["status"]
    names = [f"{item['kind']}/{item['metadata']['name']}" for item in objects]
    if status == "PENDING":
        return [f"{lab} is still PENDING, with {names}"]
    if status != "RUNNING":
        return [f"{lab} is {status} but has {names}"] if objects else []
    if sorted(names) != [f"{kind}/{row['k8s_pod_name']}" for kind in KINDS]:
        return [f"{lab} is RUNNING as {row['k8s_pod_name']} with {names}"]
    (pod,) = (item for item in objects if item["kind"] == "Pod")
    problems = [] if _is_ready(pod) else [f"{lab} is RUNNING, but its Pod is not Ready"]
    strangers = [
        item["kind"] for item in objects if item is not pod and _owner(item) != pod["metadata"]["uid"]
    ]
    return [*problems, *(f"{lab}: {kind} is not owned by its Pod" for kind in strangers)]


def _is_ready(pod: Manifest) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def _owner(item: Manifest) -> str:
    (owner,) = item["metadata"]["ownerReferences"]
    return str(owner["uid"])
