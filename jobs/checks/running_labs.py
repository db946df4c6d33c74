"""Look once at all RUNNING labs and their Pods, for the health check: a LIST in pages, then the rows.

Of a Pod only a name, whose it is and its status are kept, of a lab nothing unless something is wrong with it.
The Pods come first: a lab whose delete begins meanwhile still has its Pod, and one that starts meanwhile is
younger than the look.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import NamedTuple

from jobs.cluster.client import Cluster, Manifest
from jobs.cluster.lab_objects import collections
from jobs.cluster.pod_fields import State
from jobs.cluster.pod_status import PodStatus, running_status
from jobs.config.lifetimes import LifeSettings
from jobs.config.naming import NUMBERS, object_label_of
from jobs.database.lab_store import LabStore
from jobs.database.snapshot_rows import LabRow, live_rows
from jobs.failures import Failure
from jobs.verify import safety_limits
from jobs.verify.objects import is_governed, our_pages
from jobs.verify.safety_limits import FEW, Refusal

#: Nodes that a refusal names.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Suspect:
    """A lab that cannot be used, at the first look."""

    row: LabRow
    #: Status of its Pod; None: there is no Pod.
    status: PodStatus | None
    node: str = ""

    @property
    def lost_with_its_node(self) -> bool:
        return bool(self.node) and self.status is not None and self.status.failure is Failure.NODE_AWAY


class _Found(NamedTuple):
    whose: str
    node: str
    status: PodStatus


@dataclass(slots=True)
class RunningLabs:
    """All RUNNING labs whose stop nobody asked for, at one look."""

    running: int = 0
    #: How many of their Pods are in each state.
    states: Counter[State] = field(default_factory=Counter)
    suspects: list[Suspect] = field(default_factory=list)
    #: Labs of which some Pod names another lab or student than the row.
    strange: list[LabRow] = field(default_factory=list)
    #: Labs that are Ready, with when their program was ended for want of memory.
    killed: list[tuple[LabRow, datetime]] = field(default_factory=list)
    #: Labs that changed since the look began, or whose row names no Pod.
    left_alone: int = 0
    #: Labs whose rows have times that are none.
    odd_rows: list[int] = field(default_factory=list)
    #: Nodes with a lab that is Ready.
    nodes_heard: set[str] = field(default_factory=set)
    #: The namespace is under a policy, as that of labs is, and has no other platform's Pods; it is asked only
    #: where few labs are RUNNING and none of them has a Pod.
    is_right_place: bool = False

    @property
    def without_pod(self) -> int:
        return sum(1 for one in self.suspects if one.status is None)

    @property
    def nodes_away(self) -> set[str]:
        """The nodes that took their labs with them."""
        return {one.node for one in self.suspects if one.lost_with_its_node} - self.nodes_heard


def look_at_running_labs(
    labs: LabStore, cluster: Cluster, namespace: str, settings: LifeSettings, *, as_of: datetime
) -> RunningLabs:
    """Return what is wrong with RUNNING labs; `as_of` is the database's time, by which rows are judged.

    Pods are judged by the API server's: a clock of ours that is wrong makes no Pod old.

    Raises ApiError, ApiUnavailable, JobError.
    """
    pods: dict[str, _Found] = {}
    whose_by_id: defaultdict[str, set[str]] = defaultdict(set)
    for page in our_pages(cluster, collections(namespace)["Pod"]):
        now = cluster.answered_at
        for pod in page:
            whose = _whose(pod)
            # All objects of any platform have all three: what lacks one was made by hand.
            if pod["metadata"]["labels"].keys() >= {*NUMBERS}:
                whose_by_id[whose.partition(" ")[0]].add(whose)
            node = pod.get("spec", {}).get("nodeName", "")
            pods[pod["metadata"]["name"]] = _Found(whose, node, running_status(pod, now, settings))
    found, known = RunningLabs(), False
    for row in chain.from_iterable(live_rows(labs)):
        known = known or not _labelled(row).isdisjoint(whose_by_id.get(str(row.id), ()))
        if row.status != "RUNNING" or row.stopping:
            continue
        found.running += 1
        if row.has_odd_times:
            found.odd_rows.append(row.id)
        if row.k8s_pod_name is None or row.updated_at >= as_of:
            found.left_alone += 1
        else:
            others = whose_by_id.get(str(row.id), set()) - _labelled(row)
            _compare(found, row, pods.get(row.k8s_pod_name), others=bool(others))
    if 0 < found.running == found.without_pod < FEW and (known or not pods):
        found.is_right_place = is_governed(cluster, namespace)
    return found


def refusal(found: RunningLabs, settings: LifeSettings) -> Refusal | None:
    """Refuse to fail labs where what was found is not believed."""
    away = ", ".join(sorted(found.nodes_away)[:_NAMED])
    says = (
        f"{len(found.suspects)} of {found.running} RUNNING labs would fail, and at most {{most}} may at once"
    )
    if away:
        says += f" ({len(found.nodes_away)} nodes are away: {away})"
    share, always = settings.fail_max_share, settings.fail_always
    believed = FEW - 1 if found.is_right_place else 0
    return (
        safety_limits.another_database(strange=len(found.strange), matched=found.states.total())
        or safety_limits.too_many_at_once(
            _events(found), found.running, share=share, always=always, says=says
        )
        or safety_limits.no_pods_at_all(found.running, found.without_pod, believed=believed)
    )


def _events(found: RunningLabs) -> int:
    """Return how many suspects count: those that went with one node are one.

    Such Pods are ours by all their labels, and the API server itself says what became of them. Unless most
    nodes are silent: then it is rather the control plane that is cut off from them.
    """
    away = found.nodes_away
    if len(away) > len(found.nodes_heard):
        return len(found.suspects)
    with_them = sum(1 for one in found.suspects if one.lost_with_its_node and one.node in away)
    return len(found.suspects) - with_them + len(away)


def _compare(labs: RunningLabs, row: LabRow, pod: _Found | None, *, others: bool) -> None:
    """Judge a lab by the Pod of its row; `others`: some Pod of its id is another lab's or student's."""
    if pod is None or pod.whose not in _labelled(row):
        # Whatever their names: another platform's Pods of the same ids have other images, so other names.
        if others or pod is not None:
            labs.strange.append(row)
        else:
            labs.suspects.append(Suspect(row, None))
        return
    status = pod.status
    labs.states[status.state] += 1
    if status.state is State.LOST:
        labs.suspects.append(Suspect(row, status, pod.node))
        return
    if status.state is State.READY:
        labs.nodes_heard.add(pod.node)
    if status.killed_at:
        labs.killed.append((row, status.killed_at))


def _labelled(row: LabRow) -> set[str]:
    """Return what `_whose` says of the lab's own Pod: one of the release before has no object label."""
    numbers = " ".join(map(str, row.whose.numbers))
    return {f"{numbers} ", f"{numbers} {row.object_label or ''}"}


def _whose(pod: Manifest) -> str:
    labels = pod["metadata"]["labels"]
    return " ".join(str(labels.get(name)) for name in NUMBERS) + f" {object_label_of(pod) or ''}"
