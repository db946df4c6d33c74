"""Look at database, broker and cluster, twice: labs move meanwhile, and only what stays is a difference.

The order follows a task's way, from the outbox over the queues to the ledger, so that one that moves on is
met again further ahead and never overlooked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from dispatcher import ladder, topology
from dispatcher.interrupts import Stop
from dispatcher.settings import BrokerSettings
from dispatcher.terminal import many
from jobs.cluster import ApiError, ApiUnavailable, Cluster
from jobs.errors import JobError
from jobs.labs import LabStore
from jobs.verify import management, objects, rows
from jobs.verify.differences import GRACE_S, Difference, Kind, Repair, compare
from jobs.verify.inventory import Inventory, QueueLook
from jobs.verify.lost_requests import unattended, undecided
from jobs.verify.queues import BrokerAway, Queues
from jobs.verify.still import least_waiting
from jobs.verify.turn import Busy, turn

#: Seconds between the looks.
SETTLE_S = 3.0
#: The same where the management API's figures are involved: a quorum queue gives its own every 5 s, and the
#: API takes them over every 5 s.
HELD_SETTLE_S = 12.0
#: Of the broker: a container that holds a message has written to the ledger by then.
QUIET_HEARTBEATS = 4
#: From the highest level down, as messages go: one that moves on meanwhile is counted later.
LADDER = [ladder.level_name(level) for level in reversed(range(ladder.LEVELS))]
_BY_MESSAGES = {Kind.REQUEST_LOST, Kind.STOP_LOST, Kind.USELESS_MESSAGE, Kind.MESSAGE_WITHOUT_ROW}


class CouldNotLook(Exception):
    """Raised when a server is away, or refuses; the text names which."""


class BrokerUnseen(CouldNotLook):
    """Raised when it is the broker: what does not need it could be looked at."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What is looked at; without a broker the queues are left out."""

    labs: LabStore
    cluster: Cluster
    namespace: str
    broker: BrokerSettings | None
    #: RabbitMQ's management API, with user and password; None: it is not asked.
    management_url: str | None = field(default=None, repr=False)
    stop: Stop = field(default_factory=Stop)
    #: For people: what it is -> where it is.
    looked_at: dict[str, str] = field(default_factory=dict)
    #: False: messages are only counted, since a walk turns each queue round.
    walks: bool = True


@dataclass(frozen=True, slots=True)
class Findings:
    """What two looks agree on, and the last one."""

    differences: list[Difference]
    inventory: Inventory
    #: PENDING labs that nothing will start, unless it waits on the delay ladder.
    undecided: int


Progress = Callable[[str], None]


def find_differences(
    sources: Sources,
    *,
    grace_s: float = GRACE_S,
    settle_s: float = SETTLE_S,
    progress: Progress,
    only: Collection[int] = (),
) -> Findings:
    """Return what differs in two looks, as the second one saw it; `only`: of these labs, if there are any.

    Raises:
        CouldNotLook: nothing is known then.
    """
    first = take_inventory(sources, grace_s=grace_s, queues=True, progress=progress)
    suspected = compare(_without_figures(first), grace_s=grace_s)
    found = [one for one in suspected if not only or one.lab in only]
    waiting = undecided(first, grace_s=grace_s)
    if not found:
        return Findings([], first, waiting)
    before = {difference.identity for difference in found}
    kinds, queues_before = {difference.kind for difference in found}, first.queues
    held = sources.management_url is not None and Kind.REQUEST_LOST in kinds
    progress("something differs at first sight, looking again")
    del first, suspected, found  # the next look needs the room
    sources.stop.pause(max(settle_s, HELD_SETTLE_S) if held else settle_s)
    queues = bool(kinds & _BY_MESSAGES)
    second = take_inventory(sources, grace_s=grace_s, queues=queues, progress=progress)
    stays = [one for one in compare(second, grace_s=grace_s) if one.identity in before]
    if sources.walks and sources.broker and not held and settle_s < (quiet := quiet_s(sources.broker)):
        stays = [_left_to_a_person(one, quiet) for one in stays]
    if queues:
        waiting = undecided(second, grace_s=grace_s)
    else:
        second.queues = queues_before
    return Findings(stays, second, waiting)


def _without_figures(first: Inventory) -> Inventory:
    """Return a first look without what consumers hold, which is the second one's to say.

    Its figures are older than the look: a message that was settled seconds ago still counts as held, and the
    request of a lab that waits for nothing would seem to be in somebody's hands.
    """
    if first.queues is None:
        return first
    return replace(first, queues=replace(first.queues, unacked=None))


def quiet_s(broker: BrokerSettings) -> float:
    """Return the seconds after which a container that holds a message is in the ledger."""
    return float(QUIET_HEARTBEATS * broker.heartbeat_s)


def find_lost_requests(
    sources: Sources, suspects: list[Difference], *, grace_s: float, progress: Progress
) -> Findings:
    """Return which of these lost requests are lost for sure: no container holds the message, unknown to the
    ledger. It takes QUIET_HEARTBEATS heartbeats. Raises CouldNotLook.
    """
    if sources.broker:
        sources.stop.pause(quiet_s(sources.broker))
    inventory = take_inventory(sources, grace_s=grace_s, queues=True, progress=progress)
    before = {one.identity for one in suspects}
    stays = [one for one in compare(inventory, grace_s=grace_s) if one.identity in before]
    return Findings(stays, inventory, undecided(inventory, grace_s=grace_s))


def _left_to_a_person(one: Difference, quiet: float) -> Difference:
    """Take from a lost request its repair: a container may hold it, and not be in the ledger yet."""
    if one.repair is not Repair.FAIL_PENDING:
        return one
    says = f"; unless a container has just claimed it: RABBITMQ_API_URL or --settle {quiet:g} would tell"
    return replace(one, seen=one.seen + says, repair=None)


def take_inventory(
    sources: Sources, *, grace_s: float = GRACE_S, queues: bool, progress: Progress
) -> Inventory:
    """Look at everything once. Raises CouldNotLook."""
    try:
        inventory, began = Inventory(rows.database_now(sources.labs)), time.monotonic()
        if queues and sources.broker is not None:
            inventory.outbox = rows.outbox_tasks(sources.labs)
            if sources.walks:
                with turn(sources.labs, sources.stop, progress):
                    inventory.queues = _look_at_queues(sources, sources.broker, progress)
            else:
                inventory.queues = _look_at_queues(sources, sources.broker, progress)
            if sources.management_url is not None:
                unacked = management.unacked(sources.management_url, sources.broker, topology.BINDINGS)
                inventory.queues.unacked = unacked
        sources.stop.check()
        _look_at_objects(sources, inventory, progress)
        since = sources.cluster.answered_at - inventory.now
        inventory.cluster_ahead_s = since.total_seconds() - (time.monotonic() - began)
        _read_rows(sources.labs, inventory, progress)
        if inventory.queues is not None:
            _read_ledger(sources.labs, inventory, grace_s)
    except JobError as exc:
        # Its sentence is for students.
        raise CouldNotLook(f"the database: {exc.evidence or exc}") from exc
    except (ApiError, ApiUnavailable) as exc:
        raise CouldNotLook(f"the cluster: {exc}") from exc
    except BrokerAway as exc:
        raise BrokerUnseen(f"the broker: {exc}") from exc
    except Busy as exc:
        raise CouldNotLook(f"the queues: {exc}") from exc
    except management.ManagementAway as exc:
        raise CouldNotLook(f"the broker's management API: {exc}") from exc
    return inventory


def _look_at_queues(sources: Sources, broker: BrokerSettings, progress: Progress) -> QueueLook:
    look = QueueLook()
    queues = Queues(broker, stop=sources.stop)
    try:
        # Before the queues, because what leaves the ladder meanwhile is in them; and the ledger before the
        # ladder, because what it knows is still there a moment later.
        if queues.count(LADDER):
            look.known_delays = rows.known_delays(sources.labs)
            look.delayed = queues.count(LADDER)
        if not sources.walks:
            look.unread = least_waiting(queues, sources.stop)
        for queue in topology.BINDINGS if sources.walks else ():
            for message in queues.walk(queue, gap=look.gaps.append):
                look.messages.append(message)
                progress(many(len(look.messages), "message"))
            sources.stop.check()
        look.dead_letters = queues.count([topology.DEAD_LETTER_QUEUE])
    finally:
        queues.close()
    return look


def _look_at_objects(sources: Sources, inventory: Inventory, progress: Progress) -> None:
    seen: set[str] = set()
    for item in objects.lab_objects(sources.cluster, sources.namespace):
        if item.uid not in seen:
            seen.add(item.uid)
            inventory.objects.append(item)
            progress(many(len(inventory.objects), "object"))
    sources.stop.check()
    if not inventory.objects:
        inventory.empty_but_governed = objects.is_governed(sources.cluster, sources.namespace)
    # A sync has the job's rights, which end at the namespace: elsewhere the list itself would be refused.
    asks = sources.walks and not inventory.objects
    if asks and not objects.namespace_exists(sources.cluster, sources.namespace):
        raise CouldNotLook(f"the cluster: there is no namespace {sources.namespace} (LAB_NAMESPACE)")


def _read_rows(labs: LabStore, inventory: Inventory, progress: Progress) -> None:
    for page in rows.live_rows(labs):
        inventory.rows.update((row.id, row) for row in page)
        progress(many(len(inventory.rows), "row"))
    messages = inventory.queues.messages if inventory.queues else ()
    named = {item.lab for item in inventory.objects} | {message.lab for message in messages}
    missing = {lab for lab in named if lab is not None} - inventory.rows.keys()
    inventory.rows.update((row.id, row) for row in rows.some_rows(labs, missing))
    failed = [lab for lab in missing if lab in inventory.rows and inventory.rows[lab].status == "FAILED"]
    inventory.kept_until = rows.kept_until(labs, failed)
    # After the objects, so that none of them is newer.
    inventory.last_lab = rows.last_lab(labs)


def _read_ledger(labs: LabStore, inventory: Inventory, grace_s: float) -> None:
    waiting = [row.id for row in unattended(inventory)]
    inventory.going_on = rows.going_on(labs, waiting, grace_s=grace_s)
    inventory.last_run_at = rows.last_runs(labs, waiting)
    if inventory.queues and inventory.queues.unacked is not None:
        inventory.under_way = rows.under_way(labs)
    if inventory.queues and any(inventory.queues.unread.values()):
        inventory.overtaken_by = rows.newest_begun(labs)
