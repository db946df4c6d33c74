"""What differs between rows, objects and messages, and since when; without any I/O.

Whatever may still be under way is no difference: an object or a request younger than the grace age, a lab
that stops, a task that waits for its next attempt.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from dispatcher import tasks
from dispatcher.topology import QUEUE_HIGH
from jobs.pod_fields import State
from jobs.verify.inventory import Inventory, LabObject, LabRow, Message, comes


class Kind(enum.Enum):
    """What can differ."""

    #: A RUNNING lab has no Pod.
    POD_GONE = "pod_gone"
    #: The Pod of a RUNNING lab has ended, by itself or by its node.
    POD_ENDED = "pod_ended"
    POD_NOT_READY = "pod_not_ready"
    #: A RUNNING lab has no Service, or no NetworkPolicy.
    OBJECT_GONE = "object_gone"
    #: It does not go when the Pod goes.
    NOT_OWNED = "not_owned"
    #: Labels name another lab or student than the row.
    WRONG_LABELS = "wrong_labels"
    #: An object of a RUNNING lab that is not the one its row names.
    SECOND_OBJECT = "second_object"
    #: An object whose lab is over, or has no row.
    ORPHAN = "orphan"
    #: An object of ours that names no lab.
    NO_LAB = "no_lab"
    #: Nothing will start a PENDING lab.
    REQUEST_LOST = "request_lost"
    #: Nothing will stop a lab whose stop was asked for.
    STOP_LOST = "stop_lost"
    #: A message whose lab needs it no more.
    USELESS_MESSAGE = "useless_message"
    #: A message whose lab has no row.
    MESSAGE_WITHOUT_ROW = "message_without_row"


class Repair(enum.Enum):
    """What can be done; the text says it to a person."""

    DELETE_OBJECT = "delete it"
    FAIL_RUNNING = "make the lab FAILED and delete its objects"
    #: Of a lab without its policy, which must not go on as it is.
    REMAKE_OR_FAIL = "make it again; if its request is not known, make the lab FAILED and delete its objects"
    #: Of a lab without its Service, which goes on for whoever is connected.
    REMAKE = "make it again; if its request is not known, do nothing (with --force as without its policy)"
    FAIL_PENDING = "make the lab FAILED: its request was lost"
    PUBLISH_DELETE = "publish its delete again"
    DISCARD_MESSAGE = "take the message away"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be."""

    kind: Kind
    lab: int | None
    #: What it is about, as kind and name.
    object: str
    seen: str
    expected: str
    #: None: nobody can tell.
    since: datetime | None
    #: None: a person has to look.
    repair: Repair | None
    #: What a repair compares before it acts.
    row: LabRow | None = None
    lab_object: LabObject | None = None
    message: Message | None = None

    @property
    def identity(self) -> tuple[Kind, int | None, str]:
        """What two looks have in common if they saw the same thing."""
        return self.kind, self.lab, self.object


#: Seconds for which an object or a request may be otherwise: what makes or takes it may be under way.
GRACE_S = 60.0
#: Seconds for which a message may wait for a lab that is over: so it goes when a lab is stopped at once.
USELESS_S = 600.0
_LONG = timedelta(seconds=USELESS_S)
#: By which a lab must be older than one that overtook it: its request may have waited in the outbox.
OVERTAKEN = timedelta(seconds=120)


def compare(inventory: Inventory, *, grace_s: float = GRACE_S) -> list[Difference]:
    """Return what differs, by lab."""
    look = _Comparison(inventory, timedelta(seconds=grace_s))
    found = [*look.objects(), *look.running_labs(), *look.waiting_labs(), *look.messages()]
    return sorted(found, key=lambda one: (one.lab is None, one.lab or 0, one.kind.value, one.object))


def undecided(inventory: Inventory, *, grace_s: float = GRACE_S) -> int:
    """Return how many PENDING labs have nothing that will start them, unless one of `perhaps` does."""
    return _Comparison(inventory, timedelta(seconds=grace_s)).undecided()


def still_waiting(inventory: Inventory, *, grace_s: float = GRACE_S) -> set[int]:
    """Return the PENDING labs of which row, outbox and ledger say nothing new."""
    look = _Comparison(inventory, timedelta(seconds=grace_s))
    return {row.id for row in look.lost_labs(stopping=False)}


def unneeded(inventory: Inventory, *, grace_s: float = GRACE_S) -> int:
    """Return how many messages wait for a lab that needs them no more, though not for long."""
    return sum(1 for one in _Comparison(inventory, timedelta(seconds=grace_s)).useless(long=False))


class _Comparison:
    def __init__(self, inventory: Inventory, grace: timedelta) -> None:
        self._all = inventory
        self._grace = grace
        self._by_lab: dict[int, list[LabObject]] = defaultdict(list)
        for item in inventory.objects:
            if item.lab is not None:
                self._by_lab[item.lab].append(item)

    def _old(self, moment: datetime | None) -> bool:
        return moment is None or moment < self._all.now - self._grace

    def objects(self) -> Iterator[Difference]:
        for item in self._all.objects:
            if item.deleted_by and not self._old(item.deleted_by):
                continue
            if item.lab is None:
                if self._old(item.created_at):
                    says = "it is labelled as ours and names no lab"
                    yield _of_object(Kind.NO_LAB, None, item, says, "a lab_instance_id", None)
                continue
            row = self._all.rows.get(item.lab)
            if row is None:
                if self._old(item.created_at):
                    yield self._without_row(item)
            elif labels := _wrong_labels(row, item):
                yield labels
            elif row.over:
                if self._is_left_over(row):
                    yield _orphan(item, row, f"its lab is {row.status}", row.ended_at)
            elif _runs(row) and item.name != row.k8s_pod_name and self._old(item.created_at):
                says = f"its lab runs as {row.k8s_pod_name}"
                yield _of_object(Kind.SECOND_OBJECT, row, item, says, "no such object", Repair.DELETE_OBJECT)

    def _without_row(self, item: LabObject) -> Difference:
        if self._all.last_lab is not None and item.lab is not None and item.lab <= self._all.last_lab:
            return _orphan(item, None, "its lab has no row", item.created_at)
        says = "its lab has no row, and no lab had that number yet: it may be another platform's"
        return replace(_orphan(item, None, says, item.created_at), repair=None)

    def _is_left_over(self, row: LabRow) -> bool:
        return self._old(max(row.ended_at, self._all.kept_until.get(row.id, row.ended_at)))

    def running_labs(self) -> Iterator[Difference]:
        for row in self._all.live:
            if _runs(row):
                own = {item.kind: item for item in self._by_lab[row.id] if item.name == row.k8s_pod_name}
                yield from self._running_lab(row, own)

    def _running_lab(self, row: LabRow, own: dict[str, LabObject]) -> Iterator[Difference]:
        pod, name = own.get("Pod"), f"Pod {row.k8s_pod_name}"
        if pod is None:
            gone = "the lab is RUNNING without its Pod"
            yield Difference(Kind.POD_GONE, row.id, name, gone, "a Ready Pod", None, Repair.FAIL_RUNNING, row)
            return
        if pod.deleted_by and not self._old(pod.deleted_by):
            return
        if pod.status.state in (State.GOING, State.LOST):
            says = f"the Pod of the RUNNING lab is over: {pod.status.evidence or 'its deletion hangs'}"
            since = pod.deleted_by or pod.ready_since
            yield Difference(
                Kind.POD_ENDED, row.id, name, says, "a Ready Pod", since, Repair.FAIL_RUNNING, row, pod
            )
            return
        if pod.status.state is State.UNREADY:
            says = "the Pod of the RUNNING lab is not Ready"
            yield Difference(
                Kind.POD_NOT_READY, row.id, name, says, "a Ready Pod", pod.ready_since, None, row, pod
            )
        for kind in ("Service", "NetworkPolicy"):
            yield from _beside(row, pod, own.get(kind), f"{kind} {row.k8s_pod_name}")

    def waiting_labs(self) -> Iterator[Difference]:
        if self._all.queues is None or self._all.queues.gaps:
            return
        # Where deletes wait that nobody looked into, another one each time would only lengthen the queue.
        if not self._all.queues.unread.get(QUEUE_HIGH):
            for row in self.lost_labs(stopping=True):
                says = "its stop was asked for, and no message or run is there to do it"
                since = self._quiet_since(row)
                yield _of_row(Kind.STOP_LOST, row, says, "a delete on its way", since, Repair.PUBLISH_DELETE)
        pending = self.lost_labs(stopping=False)
        perhaps = self._all.perhaps
        for row in pending:
            says, repair = "the lab is PENDING, and no message or run is there to start it", None
            if not perhaps:
                repair = Repair.FAIL_PENDING
            elif len(pending) > perhaps:
                says += f" ({perhaps} of {len(pending)} such labs may wait unseen, or be claimed)"
            elif self._is_overtaken(row):
                says = "the lab is PENDING, and the requests of younger labs were taken before its own"
            else:
                continue
            since = self._quiet_since(row)
            yield _of_row(Kind.REQUEST_LOST, row, says, "a create on its way", since, repair)

    def undecided(self) -> int:
        pending, perhaps = self.lost_labs(stopping=False), self._all.perhaps
        if self._all.queues is None or len(pending) > perhaps:
            return 0
        return sum(1 for row in pending if not self._is_overtaken(row))

    def _is_overtaken(self, row: LabRow) -> bool:
        """Tell whether creates that were asked for later were taken; a queue gives the oldest first.

        It does not prove that a request is lost: the ladder may have delayed it, or a priority.
        """
        mark = self._all.overtaken_by
        never_seen = row.id not in self._all.last_run_at
        return never_seen and mark is not None and row.created_at < mark - OVERTAKEN

    def lost_labs(self, *, stopping: bool) -> list[LabRow]:
        return [row for row in self._all.unattended() if row.stopping is stopping and self._is_lost(row)]

    def _is_lost(self, row: LabRow) -> bool:
        return self._old(self._quiet_since(row)) and not comes(row, self._all.going_on)

    def _quiet_since(self, row: LabRow) -> datetime:
        begun = row.stop_requested_at or row.created_at
        return max(begun, self._all.last_run_at.get(row.id, begun))

    def messages(self) -> Iterator[Difference]:
        for seen in self._messages():
            if seen.lab is not None and seen.lab not in self._all.rows:
                says = f"{seen.verb} waits in {seen.queue} for a lab that has no row"
                kind = Kind.MESSAGE_WITHOUT_ROW
                yield Difference(
                    kind, seen.lab, f"message {seen.task_id}", says, "no message", seen.published_at, None
                )
        yield from self.useless(long=True)

    def useless(self, *, long: bool) -> Iterator[Difference]:
        """Yield the messages whose lab needs them no more, for a long time or not so long."""
        for seen in self._messages():
            row = None if seen.lab is None else self._all.rows.get(seen.lab)
            if row is None or not self._is_useless(seen, row):
                continue
            since = self._useless_since(seen, row)
            if (since < self._all.now - _LONG) is long:
                what = f"message {seen.task_id}"
                says = f"{seen.verb} waits in {seen.queue}, though its lab is {row.status}"
                repair = Repair.DISCARD_MESSAGE
                yield Difference(
                    Kind.USELESS_MESSAGE, row.id, what, says, "no message", since, repair, row, message=seen
                )

    def _messages(self) -> Iterator[Message]:
        for seen in self._all.queues.messages if self._all.queues else ():
            if self._old(seen.published_at):
                yield seen

    @staticmethod
    def _useless_since(seen: Message, row: LabRow) -> datetime:
        return max(row.ended_at, seen.published_at or row.ended_at)

    def _is_useless(self, seen: Message, row: LabRow) -> bool:
        # Whatever is left of a lab goes with the next message about it; a delete makes a FAILED one STOPPED.
        if not self._old(row.ended_at) or (row.over and self._by_lab.get(row.id)):
            return False
        if seen.task_name == tasks.CREATE_LAB_POD:
            return row.status != "PENDING"
        return seen.task_name == tasks.DELETE_LAB_POD and row.status == "STOPPED"


def _runs(row: LabRow) -> bool:
    return row.status == "RUNNING" and not row.stopping


def _beside(row: LabRow, pod: LabObject, item: LabObject | None, name: str) -> Iterator[Difference]:
    kind = name.partition(" ")[0]
    if item is None:
        says = f"the lab is RUNNING without its {kind}"
        repair = Repair.REMAKE_OR_FAIL if kind == "NetworkPolicy" else Repair.REMAKE
        yield Difference(Kind.OBJECT_GONE, row.id, name, says, f"a {kind}", None, repair, row)
    elif pod.uid not in item.owner_uids:
        says = "it is not owned by the lab's Pod"
        yield _of_object(Kind.NOT_OWNED, row, item, says, "the Pod as owner", None)


def _wrong_labels(row: LabRow, item: LabObject) -> Difference | None:
    """Return what is said of an object that names another lab or student: nobody knows whose it is."""
    if (item.lab_id, item.student_id) == (str(row.lab_id), str(row.student_id)):
        return None
    says = f"it is labelled lab_id={item.lab_id}, student_id={item.student_id}"
    expected = f"lab_id={row.lab_id}, student_id={row.student_id}"
    return _of_object(Kind.WRONG_LABELS, row, item, says, expected, None)


def _orphan(item: LabObject, row: LabRow | None, says: str, since: datetime) -> Difference:
    if item.deleted_by:
        says += f", and its deletion, due by {item.deleted_by:%H:%M:%S}, hangs"
    return Difference(
        Kind.ORPHAN,
        item.lab,
        str(item),
        says,
        "no such object",
        max(since, item.created_at),
        Repair.DELETE_OBJECT,
        row,
        item,
    )


def _of_object(
    kind: Kind, row: LabRow | None, item: LabObject, says: str, expected: str, repair: Repair | None
) -> Difference:
    return Difference(
        kind, row.id if row else None, str(item), says, expected, item.created_at, repair, row, item
    )


def _of_row(
    kind: Kind, row: LabRow, says: str, expected: str, since: datetime, repair: Repair | None
) -> Difference:
    return Difference(kind, row.id, "row", says, expected, since, repair, row)
