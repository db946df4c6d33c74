"""Take inventory of database, broker and cluster, twice, as verify and sync do it.

Labs move meanwhile, and only what stays is a difference. The order follows a task's way, from the outbox over
the queues to the ledger, so that one that moves on is met again further ahead and never overlooked.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Collection
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace

from dispatcher.broker import topology
from dispatcher.interrupts import Stop
from dispatcher.settings import BrokerSettings
from dispatcher.wording import many
from jobs.cluster.client import ApiError, ApiUnavailable, Cluster
from jobs.config.lab_url import names_address
from jobs.database import snapshot_rows as rows
from jobs.database.lab_store import LabStore
from jobs.errors import JobError
from jobs.verify import objects
from jobs.verify.differences import Difference, Kind, Repair, compare
from jobs.verify.inventory import GRACE_S, Inventory, QueueContents
from jobs.verify.lost_requests import unattended, undecided
from jobs.verify.queue_walk import Busy, walk, walk_lock
from jobs.verify.queues import BrokerAway, ManagementAway, Queues, unacked

#: Seconds between the looks.
SETTLE_S = 3.0
#: Seconds between the looks at the management API's figures: a quorum queue gives its own every 5 s, and the
#: API takes them over every 5 s.
HELD_SETTLE_S = 12.0
#: Heartbeats of the broker after which a container that holds a message has written to the ledger.
QUIET_HEARTBEATS = 4
_BY_MESSAGES = {Kind.REQUEST_LOST, Kind.STOP_LOST, Kind.USELESS_MESSAGE, Kind.MESSAGE_WITHOUT_ROW}


class CouldNotLook(Exception):
    """Raised when a server is away, or refuses; the text names which."""


class BrokerUnseen(CouldNotLook):
    """Raised when the broker is that server: the others could be looked at."""


class QueueReading(enum.Enum):
    """How the queues of tasks are read (jobs.verify.queue_walk, jobs.verify.queues)."""

    WALK = "walk"
    COUNT = "count"


@dataclass(frozen=True, slots=True)
class Sources:
    """What is looked at, and how; without a broker the queues are left out."""

    labs: LabStore
    cluster: Cluster
    namespace: str
    broker: BrokerSettings | None
    #: RabbitMQ's management API, with user and password; None: it is not asked.
    management_url: str | None = field(default=None, repr=False)
    stop: Stop = field(default_factory=Stop)
    #: Name -> address of each server, for people.
    looked_at: dict[str, str] = field(default_factory=dict)
    reading: QueueReading = QueueReading.WALK
    #: Seconds: younger objects and requests are no difference.
    grace_s: float = GRACE_S
    #: The settings' connection_url; None: whether rows say where their labs are is not compared.
    url_template: str | None = None
    #: Called with where a look is, again and again.
    progress: Callable[[str], None] = lambda _where: None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences on which two inventories agree, and the second of them."""

    differences: list[Difference]
    inventory: Inventory
    #: PENDING labs that nothing known will start, while messages wait that may be theirs.
    undecided: int


def find_differences(
    sources: Sources, *, settle_s: float = SETTLE_S, only: Collection[int] = ()
) -> Comparison:
    """Return what differs in two looks, as the second one saw it; `only`: of these labs, if there are any.

    Raises CouldNotLook: nothing is known then.
    """
    first = take_inventory(sources)
    suspected = compare(_without_figures(first))
    found = [one for one in suspected if not only or one.lab in only]
    waiting = undecided(first)
    if not found:
        return Comparison([], first, waiting)
    before = {difference.identity for difference in found}
    kinds, queues_before = {difference.kind for difference in found}, first.queues
    held = sources.management_url is not None and Kind.REQUEST_LOST in kinds
    sources.progress("something differs at first sight, looking again")
    del first, suspected, found  # the next look needs the room
    sources.stop.pause(max(settle_s, HELD_SETTLE_S) if held else settle_s)
    by_messages = bool(kinds & _BY_MESSAGES)
    second = take_inventory(sources if by_messages else replace(sources, broker=None))
    stays = [one for one in compare(second) if one.identity in before]
    # Without figures of what consumers hold, a container may have claimed a message, and not be in the ledger
    # yet. Who only counts takes the time for it later, by `find_lost_requests`.
    if sources.reading is QueueReading.WALK and sources.broker and not held:
        stays = [_left_to_a_person(one, quiet_s(sources.broker), settle_s) for one in stays]
    if by_messages:
        waiting = undecided(second)
    else:
        second.queues = queues_before
    return Comparison(stays, second, waiting)


def _without_figures(first: Inventory) -> Inventory:
    # Figures of what consumers hold are older than the look: a message that was settled seconds ago would
    # still seem to be in somebody's hands. The second look is to say that.
    return replace(first, queues=replace(first.queues, unacked=None)) if first.queues else first


def quiet_s(broker: BrokerSettings) -> float:
    return float(QUIET_HEARTBEATS * broker.heartbeat_s)


def find_lost_requests(sources: Sources, suspects: list[Difference]) -> Comparison:
    """Return which of these lost requests are lost for sure: no container holds their messages.

    It takes QUIET_HEARTBEATS heartbeats: whoever holds one is in the ledger then. Raises CouldNotLook.
    """
    if sources.broker:
        sources.stop.pause(quiet_s(sources.broker))
    inventory = take_inventory(sources)
    before = {one.identity for one in suspects}
    stays = [one for one in compare(inventory) if one.identity in before]
    return Comparison(stays, inventory, undecided(inventory))


def _left_to_a_person(one: Difference, quiet: float, settle_s: float) -> Difference:
    if one.repair is not Repair.FAIL_PENDING or settle_s >= quiet:
        return one
    says = f"; unless a container has just claimed it: RABBITMQ_API_URL or --settle {quiet:g} would tell"
    return replace(one, seen=one.seen + says, repair=None)


def take_inventory(sources: Sources) -> Inventory:
    """Look at everything once. Raises CouldNotLook."""
    try:
        inventory = Inventory(rows.database_now(sources.labs), grace_s=sources.grace_s)
        template = sources.url_template
        inventory.urls_name_address = template is not None and names_address(template)
        began = time.monotonic()
        if sources.broker is not None:
            inventory.outbox = rows.outbox_tasks(sources.labs)
            walks = sources.reading is QueueReading.WALK
            with walk_lock(sources.labs, sources.stop, sources.progress) if walks else nullcontext():
                inventory.queues = _read_queues(sources, sources.broker)
            if sources.management_url is not None:
                inventory.queues.unacked = unacked(sources.management_url, sources.broker)
        sources.stop.check()
        _look_at_objects(sources, inventory)
        since = sources.cluster.answered_at - inventory.now
        inventory.cluster_ahead_s = since.total_seconds() - (time.monotonic() - began)
        _read_rows(sources, inventory)
        if inventory.queues is not None:
            _read_ledger(sources.labs, inventory)
    except JobError as exc:
        # Its sentence is for students.
        raise CouldNotLook(f"the database: {exc.evidence or exc}") from exc
    except (ApiError, ApiUnavailable) as exc:
        raise CouldNotLook(f"the cluster: {exc}") from exc
    except BrokerAway as exc:
        raise BrokerUnseen(f"the broker: {exc}") from exc
    except Busy as exc:
        raise CouldNotLook(f"the queues: {exc}") from exc
    except ManagementAway as exc:
        raise CouldNotLook(f"the broker's management API: {exc}") from exc
    return inventory


def _read_queues(sources: Sources, broker: BrokerSettings) -> QueueContents:
    contents = QueueContents()
    with closing(Queues(broker, stop=sources.stop)) as queues:
        # Before the queues, because what leaves the ladder meanwhile is in them.
        contents.delayed, contents.known_delays = queues.count_delayed(sources.labs)
        if sources.reading is QueueReading.WALK:
            _walk(sources, queues, contents)
        else:
            contents.unread = queues.least_waiting()
        contents.dead_letters = queues.count([topology.DEAD_LETTER_QUEUE])
    return contents


def _walk(sources: Sources, queues: Queues, contents: QueueContents) -> None:
    for queue in topology.BINDINGS:
        for message in walk(queues, queue, gap=contents.gaps.append):
            contents.messages.append(message)
            sources.progress(many(len(contents.messages), "message"))
        sources.stop.check()


def _look_at_objects(sources: Sources, inventory: Inventory) -> None:
    seen: set[str] = set()
    for item in objects.lab_objects(sources.cluster, sources.namespace):
        if item.uid not in seen:
            seen.add(item.uid)
            inventory.objects.append(item)
            sources.progress(many(len(inventory.objects), "object"))
    sources.stop.check()
    if not inventory.objects:
        inventory.empty_but_governed = objects.is_governed(sources.cluster, sources.namespace)
        # A sync has the job's rights, which end at the namespace.
        walks = sources.reading is QueueReading.WALK
        if walks and not objects.namespace_exists(sources.cluster, sources.namespace):
            raise CouldNotLook(f"the cluster: there is no namespace {sources.namespace} (LAB_NAMESPACE)")


def _read_rows(sources: Sources, inventory: Inventory) -> None:
    labs = sources.labs
    for page in rows.live_rows(labs):
        inventory.rows.update((row.id, row) for row in page)
        sources.progress(many(len(inventory.rows), "row"))
    messages = inventory.queues.messages if inventory.queues else ()
    named = {item.lab for item in inventory.objects} | {message.lab for message in messages}
    missing = {lab for lab in named if lab is not None} - inventory.rows.keys()
    inventory.rows.update((row.id, row) for row in rows.some_rows(labs, missing))
    failed = [lab for lab in missing if lab in inventory.rows and inventory.rows[lab].status == "FAILED"]
    inventory.kept_until = rows.kept_until(labs, failed)
    # After the objects, so that none of them is newer.
    inventory.last_lab = rows.last_lab(labs)


def _read_ledger(labs: LabStore, inventory: Inventory) -> None:
    waiting = [row.id for row in unattended(inventory)]
    inventory.going_on = rows.going_on(labs, waiting, grace_s=inventory.grace_s)
    inventory.last_run_at = rows.last_runs(labs, waiting)
    if inventory.queues and inventory.queues.unacked is not None:
        inventory.under_way = rows.under_way(labs)
    if inventory.queues and any(inventory.queues.unread.values()):
        inventory.overtaken_by = rows.newest_begun(labs)
