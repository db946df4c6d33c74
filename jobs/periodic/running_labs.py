"""One look at all RUNNING labs and their Pods: one labelled LIST in pages, then the rows page by page.

Of a Pod only a name, whose it is and its status are kept, of a lab nothing unless something is wrong with it.
The Pods come first: a lab whose delete begins meanwhile still has its Pod, and one that starts meanwhile is
younger than the look.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from jobs.brake import another_database, most_at_once, no_pods_at_all
from jobs.cluster import Cluster, Manifest
from jobs.failures import Failure
from jobs.labs import LabStore
from jobs.life_settings import LifeSettings
from jobs.naming import MANAGED_BY, Whose
from jobs.pod_fields import State
from jobs.pod_status import PodStatus, running_status
from jobs.verify.inventory import LabRow
from jobs.verify.objects import PAGE
from jobs.verify.rows import live_rows

#: Nodes that a refusal names.
_NAMED = 5
_SELECTOR = f"app.kubernetes.io/managed-by={MANAGED_BY}"


@dataclass(frozen=True, slots=True)
class Suspect:
    """A lab that cannot be used, at the first look."""

    row: LabRow
    #: Of its Pod; None: there is none.
    status: PodStatus | None
    #: Where its Pod is.
    node: str = ""

    @property
    def lost_with_its_node(self) -> bool:
        """True if the API server says that the node is away, and which one that is."""
        return bool(self.node) and self.status is not None and self.status.failure is Failure.NODE_AWAY


class _Found(NamedTuple):
    whose: str
    node: str
    status: PodStatus


@dataclass(slots=True)
class Look:
    """What one look found."""

    #: RUNNING labs whose stop nobody asked for.
    running: int = 0
    #: Of their Pods.
    states: Counter[State] = field(default_factory=Counter)
    suspects: list[Suspect] = field(default_factory=list)
    #: Labs of which some Pod names another lab or student than the row.
    strange: list[LabRow] = field(default_factory=list)
    #: Labs that are Ready, with when their program was ended for want of memory.
    killed: list[tuple[LabRow, datetime]] = field(default_factory=list)
    #: Labs that changed since the look began, or whose row names no Pod.
    left_alone: int = 0
    #: Nodes with a lab that is Ready.
    nodes_heard: set[str] = field(default_factory=set)
    #: There are Pods, and none of them is of a lab that the rows know as live.
    only_others: bool = False

    @property
    def without_pod(self) -> int:
        """How many of the labs have no Pod."""
        return sum(1 for one in self.suspects if one.status is None)

    @property
    def nodes_away(self) -> set[str]:
        """Nodes that took their labs with them."""
        return {one.node for one in self.suspects if one.lost_with_its_node} - self.nodes_heard


def look_at_running_labs(
    labs: LabStore, cluster: Cluster, pods_path: str, settings: LifeSettings, *, as_of: datetime
) -> Look:
    """Return what is wrong with RUNNING labs; `as_of` is the database's time, by which rows are judged.

    Pods are judged by the API server's: a clock of ours that is wrong makes no Pod old.

    Raises ApiError, ApiUnavailable, JobError.
    """
    pods: dict[str, _Found] = {}
    whose_by_id: defaultdict[str, set[str]] = defaultdict(set)
    for page in cluster.list_pages(pods_path, limit=PAGE, labelSelector=_SELECTOR):
        now = cluster.answered_at
        for pod in page:
            whose = _whose(pod)
            # All objects of any platform have all three: what lacks one was made by hand.
            if pod["metadata"]["labels"].keys() >= {*Whose._fields}:
                whose_by_id[whose.partition(" ")[0]].add(whose)
            node = pod.get("spec", {}).get("nodeName", "")
            pods[pod["metadata"]["name"]] = _Found(whose, node, running_status(pod, now, settings))
    look = Look()
    known = False
    for row in _live(labs):
        known = known or _labelled(row) in whose_by_id.get(str(row.id), ())
        if row.status != "RUNNING" or row.stopping:
            continue
        look.running += 1
        if row.k8s_pod_name is None or row.updated_at >= as_of:
            look.left_alone += 1
        else:
            others = whose_by_id.get(str(row.id), set()) - {_labelled(row)}
            _compare(look, row, pods.get(row.k8s_pod_name), others=bool(others))
    look.only_others = bool(pods) and not known
    return look


def refusal(look: Look, settings: LifeSettings, *, right_place: bool) -> str | None:
    """Return why what was found is not believed, or None.

    `right_place`: the namespace has what every namespace of labs has.
    """
    if why := another_database(len(look.strange), look.states.total()):
        return why
    most = most_at_once(look.running, share=settings.fail_max_share, always=settings.fail_always)
    if _events(look) > most:
        away = ", ".join(sorted(look.nodes_away)[:_NAMED])
        return (
            f"{len(look.suspects)} of {look.running} RUNNING labs would fail, and at most {most} may at once"
            + (f" ({len(look.nodes_away)} nodes are away: {away})" if away else "")
        )
    return no_pods_at_all(look.running, look.without_pod, right_place=right_place)


def _events(look: Look) -> int:
    """Return how many suspects the brake counts: those that went with one node are one.

    Such Pods are ours by all their labels, and the API server itself says what became of them. Unless most
    nodes are silent: then it is rather the control plane that is cut off from them.
    """
    away = look.nodes_away
    if len(away) > len(look.nodes_heard):
        return len(look.suspects)
    with_them = sum(1 for one in look.suspects if one.lost_with_its_node and one.node in away)
    return len(look.suspects) - with_them + len(away)


def _live(labs: LabStore) -> Iterator[LabRow]:
    for rows in live_rows(labs):
        yield from rows


def _compare(look: Look, row: LabRow, found: _Found | None, *, others: bool) -> None:
    """Judge a lab by the Pod of its row; `others`: some Pod of its id is another lab's or student's."""
    if found is None or found.whose != _labelled(row):
        # Whatever their names: another platform's Pods of the same ids have other images, so other names.
        if others or found is not None:
            look.strange.append(row)
        else:
            look.suspects.append(Suspect(row, None))
        return
    status = found.status
    look.states[status.state] += 1
    if status.state is State.LOST:
        look.suspects.append(Suspect(row, status, found.node))
        return
    if status.state is State.READY:
        look.nodes_heard.add(found.node)
    if status.killed_at:
        look.killed.append((row, status.killed_at))


def _labelled(row: LabRow) -> str:
    return " ".join(map(str, row.whose))


def _whose(pod: Manifest) -> str:
    labels = pod["metadata"]["labels"]
    return " ".join(str(labels.get(name)) for name in Whose._fields)
