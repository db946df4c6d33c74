"""Prove which labs wait for a message that is not there any more; without any I/O.

A request is looked for in the queues, the outbox and the ledger. Where a message waits, or is held, of which
nobody can say whose it is, a PENDING lab is not proven to be lost: the message may be its own.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from datetime import datetime, timedelta

from dispatcher.broker.topology import QUEUE_HIGH
from dispatcher.tasks import CREATE_LAB_POD, DELETE_LAB_POD
from jobs.database.snapshot_rows import LabRow
from jobs.verify.inventory import Inventory

#: Tasks that end a lab's wait for its start, and for its stop.
_STARTS = frozenset({CREATE_LAB_POD, DELETE_LAB_POD})
_STOPS = frozenset({DELETE_LAB_POD})
#: A lab must be so much older than one that overtook it: its request may have waited in the outbox.
_OVERTAKEN = timedelta(seconds=120)


class Proof(enum.Enum):
    """What is known of a PENDING lab for which no message and no run is known."""

    #: There is no message that may be its request.
    LOST = "lost"
    #: More labs wait than there are messages that may be their requests.
    SOME_LOST = "some lost"
    #: The requests of younger labs were taken before its own. A queue gives the oldest first, but the ladder
    #: may have delayed it, or a priority.
    OVERTAKEN = "overtaken"
    #: There is a message that may be its request.
    UNDECIDED = "undecided"


def unattended(inventory: Inventory) -> list[LabRow]:
    """Return the PENDING and stopping labs for which no message and no outbox row waits."""
    messages = inventory.queues.messages if inventory.queues else ()
    waiting = inventory.outbox | {(seen.lab, seen.task_name) for seen in messages if seen.lab is not None}
    return [row for row in inventory.live if _needs(row) and not _comes(row, waiting)]


def lost_starts(inventory: Inventory) -> list[LabRow]:
    """Return the PENDING labs that nothing known will start; what has just happened to them has its time."""
    return [row for row in _quiet(inventory) if not row.stopping]


def lost_stops(inventory: Inventory) -> list[LabRow]:
    """Return the labs whose stop nothing will do; none while deletes wait in their queue, not looked into.

    Another delete for each lab would only lengthen that queue.
    """
    if inventory.queues and inventory.queues.unread.get(QUEUE_HIGH):
        return []
    return [row for row in _quiet(inventory) if row.stopping]


def prove_starts(inventory: Inventory) -> list[tuple[LabRow, Proof]]:
    """Return what is known of each of the lost starts."""
    rows, messages = lost_starts(inventory), anybodys_messages(inventory)
    if not messages:
        return [(row, Proof.LOST) for row in rows]
    if len(rows) > messages:
        return [(row, Proof.SOME_LOST) for row in rows]
    return [(row, Proof.OVERTAKEN if _is_overtaken(inventory, row) else Proof.UNDECIDED) for row in rows]


def undecided(inventory: Inventory) -> int:
    """Return how many PENDING labs nothing known will start, while a message waits that may be theirs."""
    if inventory.queues is None:
        return 0
    proofs = prove_starts(inventory)
    return sum(1 for _, proof in proofs if proof is Proof.UNDECIDED)


def anybodys_messages(inventory: Inventory) -> int:
    """Return how many messages may start any lab: on the ladder, just claimed, or not looked into."""
    queues = inventory.queues
    if queues is None:
        return 0
    unseen = (*queues.held(inventory.under_way).values(), *queues.unread.values())
    return queues.unknown_delays + sum(unseen)


def quiet_since(inventory: Inventory, row: LabRow) -> datetime:
    """Return when a lab was asked for, or its stop, or when a container was at it last."""
    begun = row.stop_requested_at or row.created_at
    return max(begun, inventory.last_run_at.get(row.id, begun))


def _quiet(inventory: Inventory) -> list[LabRow]:
    before = inventory.now - timedelta(seconds=inventory.grace_s)
    return [
        row
        for row in unattended(inventory)
        if quiet_since(inventory, row) < before and not _comes(row, inventory.going_on)
    ]


def _is_overtaken(inventory: Inventory, row: LabRow) -> bool:
    mark = inventory.overtaken_by
    never_seen = row.id not in inventory.last_run_at
    return never_seen and mark is not None and row.created_at < mark - _OVERTAKEN


def _needs(row: LabRow) -> frozenset[str]:
    """Return the tasks of which one has to be on its way, none for a lab that just runs."""
    if row.stopping:
        return _STOPS
    return _STARTS if row.status == "PENDING" else frozenset()


def _comes(row: LabRow, known: Collection[tuple[int, str]]) -> bool:
    """Tell whether one of the tasks that a lab needs is among the known (lab, task name)."""
    return any((row.id, name) in known for name in _needs(row))
