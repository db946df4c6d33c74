"""Compare rows, objects and messages, and say since when they differ; without any I/O.

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
from jobs.cluster.pod_fields import State
from jobs.config.lab_url import address_in, url_host
from jobs.config.naming import OBJECT, is_anothers
from jobs.database.snapshot_rows import LabRow
from jobs.verify import lost_requests
from jobs.verify.inventory import Inventory, LabObject, Message
from jobs.verify.lost_requests import Proof


class Kind(enum.Enum):
    """What can differ; `Difference.seen` says it to people."""

    POD_GONE = "pod_gone"
    POD_ENDED = "pod_ended"
    POD_NOT_READY = "pod_not_ready"
    #: A RUNNING lab has no Service, or no NetworkPolicy.
    OBJECT_GONE = "object_gone"
    #: A Service or NetworkPolicy does not go when the lab's Pod goes.
    NOT_OWNED = "not_owned"
    #: The row of a RUNNING lab says another address than its Service has.
    OTHER_ADDRESS = "other_address"
    #: Labels name another lab or student than the row.
    WRONG_LABELS = "wrong_labels"
    #: An object of a RUNNING lab is not the one its row names.
    SECOND_OBJECT = "second_object"
    #: The lab of an object is over, or has no row.
    ORPHAN = "orphan"
    #: An object of ours names no lab.
    NO_LAB = "no_lab"
    REQUEST_LOST = "request_lost"
    STOP_LOST = "stop_lost"
    USELESS_MESSAGE = "useless_message"
    MESSAGE_WITHOUT_ROW = "message_without_row"


class Repair(enum.Enum):
    """What `jobs.verify.repairs` can do, as people are told it."""

    DELETE_OBJECT = "delete it"
    FAIL_RUNNING = "make the lab FAILED and delete its objects"
    #: A lab without its policy must not go on as it is.
    REBUILD_OR_FAIL = "make it again; if its request is not known, make the lab FAILED and delete its objects"
    #: A lab without its Service goes on for whoever is connected.
    REBUILD = "make it again; if its request is not known, do nothing (with --force as without its policy)"
    CORRECT_URL = "write the Service's address into the row"
    FAIL_PENDING = "make the lab FAILED: its request was lost"
    PUBLISH_DELETE = "publish its delete again"
    DISCARD_MESSAGE = "take the message away"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that is not as it should be."""

    kind: Kind
    lab: int | None
    #: Kind and name of what differs.
    object: str
    seen: str
    expected: str
    #: None: nobody can tell.
    since: datetime | None = None
    #: None: a person has to look.
    repair: Repair | None = None
    #: A repair compares these before it acts.
    row: LabRow | None = None
    lab_object: LabObject | None = None
    message: Message | None = None

    @property
    def identity(self) -> tuple[Kind, int | None, str]:
        """Equal for the same thing seen twice."""
        return self.kind, self.lab, self.object


#: Seconds for which a message may wait for a lab that is over: a lab that is stopped at once leaves one.
USELESS_S = 600.0


def compare(inventory: Inventory) -> list[Difference]:
    comparer = _Comparer(inventory)
    found = [*comparer.objects(), *comparer.running_labs(), *comparer.waiting_labs(), *comparer.messages()]
    return sorted(found, key=lambda one: (one.lab is None, one.lab or 0, one.kind.value, one.object))


def unneeded(inventory: Inventory) -> int:
    """Return how many messages wait for a lab that needs them no more, though not for long."""
    useless = _Comparer(inventory).useless_messages()
    return sum(1 for *_, since in useless if not _is_long_ago(inventory, since))


class _Comparer:
    def __init__(self, inventory: Inventory) -> None:
        self._all = inventory
        self._by_lab: dict[int, list[LabObject]] = defaultdict(list)
        for item in inventory.objects:
            if item.lab is not None:
                self._by_lab[item.lab].append(item)

    def _old(self, moment: datetime | None) -> bool:
        return moment is None or moment < self._all.now - timedelta(seconds=self._all.grace_s)

    def objects(self) -> Iterator[Difference]:
        """Yield objects that should not be there, or whose labels differ from the row."""
        for item in self._all.objects:
            if item.deleted_by and not self._old(item.deleted_by):
                continue
            row = None if item.lab is None else self._all.rows.get(item.lab)
            if row is None:
                if self._old(item.created_at):
                    yield self._without_row(item)
            elif (item.lab_id, item.student_id) != (str(row.lab_id), str(row.student_id)):
                # Nobody knows whose it is.
                seen = f"it is labelled lab_id={item.lab_id}, student_id={item.student_id}"
                expected = f"lab_id={row.lab_id}, student_id={row.student_id}"
                yield _of_object(Kind.WRONG_LABELS, item, row, seen, expected)
            elif is_anothers(item.object_label, row.object_label):
                seen = f"it is of another lab with the same id, labelled {OBJECT}={item.object_label}"
                yield _of_object(Kind.WRONG_LABELS, item, row, seen, f"{OBJECT}={row.object_label}")
            elif row.over:
                if self._old(max(row.ended_at, self._all.kept_until.get(row.id, row.ended_at))):
                    yield _orphan(item, row, f"its lab is {row.status}", repair=Repair.DELETE_OBJECT)
            elif _runs(row) and item.name != row.k8s_pod_name and self._old(item.created_at):
                seen, repair = f"its lab runs as {row.k8s_pod_name}", Repair.DELETE_OBJECT
                yield _of_object(Kind.SECOND_OBJECT, item, row, seen, "no such object", repair=repair)

    def _without_row(self, item: LabObject) -> Difference:
        if item.lab is None:
            seen = "it is labelled as ours and names no lab"
            return _of_object(Kind.NO_LAB, item, None, seen, "a lab_instance_id")
        if self._all.last_lab is not None and item.lab <= self._all.last_lab:
            return _orphan(item, None, "its lab has no row", repair=Repair.DELETE_OBJECT)
        seen = "its lab has no row, and no lab had that number yet: it may be another platform's"
        return _orphan(item, None, seen, repair=None)

    def running_labs(self) -> Iterator[Difference]:
        for row in self._all.live:
            if _runs(row):
                own = {item.kind: item for item in self._by_lab[row.id] if item.name == row.k8s_pod_name}
                yield from self._running_lab(row, own)

    def _running_lab(self, row: LabRow, own: dict[str, LabObject]) -> Iterator[Difference]:
        pod = own.get("Pod")
        if pod is None:
            yield _gone(Kind.POD_GONE, row, "Pod", "a Ready Pod", Repair.FAIL_RUNNING)
            return
        if pod.deleted_by and not self._old(pod.deleted_by):
            return
        if pod.status.state in (State.GOING, State.LOST):
            seen = f"the Pod of the RUNNING lab is over: {pod.status.evidence or 'its deletion hangs'}"
            ended = _of_object(Kind.POD_ENDED, pod, row, seen, "a Ready Pod", repair=Repair.FAIL_RUNNING)
            yield replace(ended, since=pod.deleted_by or pod.ready_since)
            return
        if pod.status.state is State.UNREADY:
            seen = "the Pod of the RUNNING lab is not Ready"
            unready = _of_object(Kind.POD_NOT_READY, pod, row, seen, "a Ready Pod")
            yield replace(unready, since=pod.ready_since)
        for kind, repair in (("Service", Repair.REBUILD), ("NetworkPolicy", Repair.REBUILD_OR_FAIL)):
            item = own.get(kind)
            if item is None:
                yield _gone(Kind.OBJECT_GONE, row, kind, f"a {kind}", repair)
            elif pod.uid not in item.owner_uids:
                seen = "it is not owned by the lab's Pod"
                yield _of_object(Kind.NOT_OWNED, item, row, seen, "the Pod as owner")
        yield from self._address(row, own.get("Service"))

    def _address(self, row: LabRow, service: LabObject | None) -> Iterator[Difference]:
        told, address = (
            address_in(row.connection_url),
            service and address_in(f"//{url_host(service.address or '')}"),
        )
        if service is None or not self._all.urls_name_address or not address or told in (None, address):
            return
        seen = f"the lab's URL says {told}, and its Service has the address {address}"
        yield _of_object(Kind.OTHER_ADDRESS, service, row, seen, "one address", repair=Repair.CORRECT_URL)

    def waiting_labs(self) -> Iterator[Difference]:
        """Yield labs that wait for a message that will not come."""
        if self._all.queues is None or self._all.queues.gaps:
            return
        for row in lost_requests.lost_stops(self._all):
            seen = "its stop was asked for, and no message or run is there to do it"
            lost = _of_row(Kind.STOP_LOST, row, seen, "a delete on its way", Repair.PUBLISH_DELETE)
            yield replace(lost, since=lost_requests.quiet_since(self._all, row))
        starts = lost_requests.prove_starts(self._all)
        for row, proof in starts:
            seen, repair = "the lab is PENDING, and no message or run is there to start it", None
            if proof is Proof.UNDECIDED:
                continue
            if proof is Proof.LOST:
                repair = Repair.FAIL_PENDING
            elif proof is Proof.SOME_LOST:
                messages = lost_requests.anybodys_messages(self._all)
                seen += f" ({messages} of {len(starts)} such labs may wait unseen, or be claimed)"
            else:
                seen = "the lab is PENDING, and the requests of younger labs were taken before its own"
            lost = _of_row(Kind.REQUEST_LOST, row, seen, "a create on its way", repair)
            yield replace(lost, since=lost_requests.quiet_since(self._all, row))

    def messages(self) -> Iterator[Difference]:
        for message in self._old_messages():
            if message.lab is not None and message.lab not in self._all.rows:
                seen = f"{message.verb} waits in {message.queue} for a lab that has no row"
                yield _of_message(Kind.MESSAGE_WITHOUT_ROW, message, seen, since=message.published_at)
        for message, row, since in self.useless_messages():
            if _is_long_ago(self._all, since):
                seen = f"{message.verb} waits in {message.queue}, though its lab is {row.status}"
                useless = _of_message(Kind.USELESS_MESSAGE, message, seen, since=since)
                yield replace(useless, row=row, repair=Repair.DISCARD_MESSAGE)

    def useless_messages(self) -> Iterator[tuple[Message, LabRow, datetime]]:
        """Yield messages that their lab needs no more, and since when."""
        for message in self._old_messages():
            row = None if message.lab is None else self._all.rows.get(message.lab)
            if row is not None and self._is_useless(message, row):
                yield message, row, max(row.ended_at, message.published_at or row.ended_at)

    def _old_messages(self) -> Iterator[Message]:
        for message in self._all.queues.messages if self._all.queues else ():
            if self._old(message.published_at):
                yield message

    def _is_useless(self, message: Message, row: LabRow) -> bool:
        # Whatever is left of a lab goes with the next message about it; a delete makes a FAILED one STOPPED.
        if not self._old(row.ended_at) or (row.over and self._by_lab.get(row.id)):
            return False
        if message.task_name == tasks.CREATE_LAB_POD:
            return row.status != "PENDING"
        return message.task_name == tasks.DELETE_LAB_POD and row.status == "STOPPED"


def _runs(row: LabRow) -> bool:
    return row.status == "RUNNING" and not row.stopping


def _is_long_ago(inventory: Inventory, since: datetime) -> bool:
    return since < inventory.now - timedelta(seconds=USELESS_S)


def _of_row(kind: Kind, row: LabRow, seen: str, expected: str, repair: Repair | None) -> Difference:
    return Difference(
        kind=kind, lab=row.id, object="row", seen=seen, expected=expected, repair=repair, row=row
    )


def _gone(kind: Kind, row: LabRow, what: str, expected: str, repair: Repair) -> Difference:
    gone = _of_row(kind, row, f"the lab is RUNNING without its {what}", expected, repair)
    return replace(gone, object=f"{what} {row.k8s_pod_name}")


def _orphan(item: LabObject, row: LabRow | None, seen: str, *, repair: Repair | None) -> Difference:
    if item.deleted_by:
        seen += f", and its deletion, due by {item.deleted_by:%H:%M:%S}, hangs"
    since = max(row.ended_at, item.created_at) if row else item.created_at
    return replace(_of_object(Kind.ORPHAN, item, row, seen, "no such object", repair=repair), since=since)


def _of_object(
    kind: Kind, item: LabObject, row: LabRow | None, seen: str, expected: str, *, repair: Repair | None = None
) -> Difference:
    return Difference(
        kind=kind,
        lab=item.lab,
        object=str(item),
        seen=seen,
        expected=expected,
        since=item.created_at,
        repair=repair,
        row=row,
        lab_object=item,
    )


def _of_message(kind: Kind, message: Message, seen: str, *, since: datetime | None) -> Difference:
    return Difference(
        kind=kind,
        lab=message.lab,
        object=f"message {message.task_id}",
        seen=seen,
        expected="no message",
        since=since,
        message=message,
    )
