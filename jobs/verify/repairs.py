"""Mend what is safe to mend: each repair changes only what is still as it was seen, and is in the ledger.

`autolabs verify --repair` and the sync call it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from dispatcher.errors import PublishError
from dispatcher.message.envelope import TaskMessage, new_task_id
from dispatcher.tasks import DELETE_LAB_POD
from jobs.cluster.client import ApiError, ApiUnavailable
from jobs.cluster.lab_objects import LabObjects, collections
from jobs.cluster.pod_fields import State
from jobs.config.lifetimes import LifeSettings
from jobs.config.stored import Configs
from jobs.database.ledger import VERIFY_TASK, Ending, TaskRunRecord
from jobs.database.snapshot_rows import LabRow, some_rows
from jobs.errors import JobError
from jobs.failures import Failure
from jobs.handlers.give_up import LostLabs
from jobs.handlers.rebuild import CannotRebuild, Rebuild, RefusedByCluster
from jobs.verify import safety_limits
from jobs.verify.differences import Difference, Kind, Repair
from jobs.verify.inventory import Inventory, Message
from jobs.verify.objects import make_object
from jobs.verify.queue_walk import Busy, walk, walk_lock
from jobs.verify.queues import BrokerAway, Queues
from jobs.verify.remakes import Remakes
from jobs.verify.safety_limits import FEW, Refusal
from jobs.verify.snapshot import Sources

#: Labs that one run may always repair, and the share of the live ones beyond that.
ALWAYS, SHARE = LifeSettings().fail_always, LifeSettings().fail_max_share
#: Repairs that end no lab, unless one of them is not possible.
REBUILT = (Repair.REBUILD, Repair.REBUILD_OR_FAIL, Repair.CORRECT_URL)

#: Whether something is repaired, and what was done or why not.
_Done = tuple[bool, str]
_Result = tuple[Difference, bool, str]

_JUDGED_LATER = "is judged with those of other labs"
_MEANWHILE = "left alone: it has changed since it was seen"


def refusal(
    differences: Sequence[Difference],
    inventory: Inventory,
    *,
    share: float = SHARE,
    always: int = ALWAYS,
) -> Refusal | None:
    """Refuse to repair so much at once, or what is not believed."""
    strange = {one.lab for one in differences if one.kind is Kind.WRONG_LABELS}
    with_objects = {item.lab for item in inventory.objects if item.lab is not None}
    with_row = with_objects & inventory.rows.keys()
    repairable = [one for one in differences if one.repair not in (None, *REBUILT)]
    running = {row.id for row in inventory.live if row.status == "RUNNING" and not row.stopping}
    gone = {one.lab for one in repairable if one.kind is Kind.POD_GONE}
    believed = FEW - 1 if with_row - strange or inventory.empty_but_governed else 0
    affected, live = len({one.lab for one in repairable}), sum(1 for _ in inventory.live)
    says = f"{affected} labs would be repaired; at most {{most}} of {live} live ones are at a time"
    # The clocks matter only where something would be repaired by its age.
    ahead_s = inventory.cluster_ahead_s if any(one.repair for one in differences) else 0
    return (
        safety_limits.cluster_clock_differs(ahead_s=ahead_s, grace_s=inventory.grace_s)
        or safety_limits.another_database(strange=len(strange), matched=len(with_row - strange))
        or safety_limits.too_many_at_once(affected, live, share=share, always=always, says=says)
        or safety_limits.no_pods_at_all(len(running), len(running & gone), believed=believed)
        or safety_limits.no_rows_at_all(with_objects=len(with_objects), with_row=len(with_row))
    )


def _urgency(one: Difference) -> tuple[bool, bool]:
    # The row first, because a repair in the ledger counts as something that happened to the lab. Without its
    # Pod a lab needs no policy; with it, it must not be without one.
    return one.repair is Repair.DELETE_OBJECT, not one.object.startswith("Pod ")


def _attempt(repair: Callable[[Difference], _Done], one: Difference) -> _Done:
    try:
        return repair(one)
    except (JobError, ApiError, ApiUnavailable, PublishError) as exc:
        return False, f"not repaired: {_told(exc)}"


def _told(exc: Exception) -> str:
    """Return what operators are told; the sentence of a JobError is for students."""
    return exc.evidence or str(exc) if isinstance(exc, JobError) else str(exc)


@dataclass(kw_only=True)
class Repairs:
    """Repairs of differences that a look as of `as_of` (the database's time) has found."""

    sources: Sources
    as_of: datetime
    #: As Rebuild calls it.
    configs: Callable[[], Configs]
    #: Task and container of the rows in the ledger.
    task_name: str = VERIFY_TASK
    pod_name: str | None = None
    force: bool = False
    #: Cause -> how many labs in a row are started again.
    restarts: Mapping[str, int] = field(default_factory=dict)
    #: Differences of labs that stay without their Service.
    unreachable: list[Difference] = field(default_factory=list)
    #: Labs that were started again; their creates are in the outbox.
    restarted: int = 0
    #: Objects that could not be made again, for whatever is not one lab's own fault.
    remakes: Remakes = field(default_factory=Remakes)

    def __post_init__(self) -> None:
        sources = self.sources
        self._objects = LabObjects(sources.cluster, sources.namespace)
        self._rebuild = Rebuild(sources.labs, self._objects, self.configs, namespace=sources.namespace)
        self._failed: set[int] = set()
        self._not_rebuilt = 0
        self._repairs = {
            Repair.DELETE_OBJECT: self._delete_object,
            Repair.FAIL_RUNNING: self._fail_running,
            **dict.fromkeys(REBUILT, self._rebuild_or_fail),
            Repair.CORRECT_URL: self._correct_url,
            Repair.FAIL_PENDING: self._fail_pending,
        }

    def run(self, differences: Iterable[Difference]) -> Iterator[_Result]:
        """Repair one after the other; yield each with whether it is repaired, and what was done or why not.

        Messages come last, as they need another walk through their queues.
        """
        by_broker: list[Difference] = []
        for one in sorted(differences, key=_urgency):
            self.sources.stop.check()
            if one.repair in self._repairs:
                done, what = _attempt(self._repairs[one.repair], one)
                if what != _JUDGED_LATER:
                    yield one, done, what
            elif one.repair:
                by_broker.append(one)
        for kind, one, why, labs in self.remakes.judged():
            self.sources.stop.check()
            yield one, *_attempt(partial(self._end_refused, kind, why, labs), one)
        if by_broker:
            yield from self._repair_messages(by_broker)

    def _delete_object(self, one: Difference) -> _Done:
        item, row = one.lab_object, self._row(one)
        if item is None or not (row is None or row.over or row.k8s_pod_name != item.name):
            return False, _MEANWHILE
        path = f"{collections(self.sources.namespace)[item.kind]}/{item.name}"
        record = self._record(one, f"deleted {item}")
        # First: a database that takes nothing must not have its objects deleted.
        self.sources.labs.begin(record)
        try:
            self.sources.cluster.delete(path, uid=item.uid, grace_s=0 if item.kind == "Pod" else None)
        except (ApiError, ApiUnavailable) as exc:
            self.sources.labs.record(record, Ending("failed", error_message="not deleted", evidence=str(exc)))
            raise
        self.sources.labs.record(record, Ending("succeeded"))
        return True, f"deleted {item}"

    def _fail_running(self, one: Difference) -> _Done:
        if one.row is None or one.lab is None or self._is_there(one):
            return False, _MEANWHILE
        failure = Failure.OBJECT_GONE if one.kind is Kind.OBJECT_GONE else Failure.POD_GONE
        return self._fail(one, one.row, failure)

    def _rebuild_or_fail(self, one: Difference) -> _Done:
        if one.lab in self._failed:
            return True, "the lab is FAILED already, see above"
        if one.row is None or self._is_there(one):
            return False, _MEANWHILE
        kind, _, _ = one.object.partition(" ")
        if why := self.remakes.blocked(kind):
            self.remakes.skipped(kind, one)
            return False, f"left to the next run, as no {kind} can be made now: {why}"
        try:
            made = self._rebuild(one.row.whose, kind)
        except RefusedByCluster as exc:
            self.remakes.refused(kind, one, str(exc))
            return False, _JUDGED_LATER
        except CannotRebuild as exc:
            return self._end_without(one, kind, f"cannot be made again: {exc}")
        except JobError as exc:
            self.remakes.failed(kind, one, exc)
            raise
        self.remakes.made(kind)
        return self._done(one, made) if made else (False, _MEANWHILE)

    def _end_refused(self, kind: str, refusal: str, labs: int, one: Difference) -> _Done:
        why = f"cannot be made again: {refusal}"
        if labs > 1 and not self.force:
            self.remakes.tell(kind, refusal, [one])
            return False, f"left alone, as {labs} labs get this refusal (--force makes them FAILED); it {why}"
        return self._end_without(one, kind, why)

    def _end_without(self, one: Difference, kind: str, why: str) -> _Done:
        if one.lab in self._failed:
            return True, "the lab is FAILED already, see above"
        if one.repair is Repair.REBUILD and not self.force:
            self.unreachable.append(one)
            return False, f"left alone, as the lab's Pod still works (--force makes it FAILED); it {why}"
        if self._not_rebuilt >= ALWAYS and not self.force:
            return False, f"left to the next run, {ALWAYS} of this one are FAILED; it {why}"
        done, what = self._fail_running(one)
        self._not_rebuilt += done
        return done, f"{what}; its {kind} {why}"

    def _correct_url(self, one: Difference) -> _Done:
        if one.row is None:
            return False, _MEANWHILE
        done = self._rebuild.correct_url(one.row.whose, one.row.connection_url)
        return self._done(one, done) if done else (False, _MEANWHILE)

    def _fail_pending(self, one: Difference) -> _Done:
        return self._fail(one, one.row, Failure.REQUEST_LOST) if one.row else (False, _MEANWHILE)

    def _fail(self, one: Difference, row: LabRow, failure: Failure) -> _Done:
        if row.id in self._failed:
            return True, "the lab is FAILED already, see above"
        error = failure.error(evidence=f"{one.object}: {one.seen}")
        record = self._record(one, "the lab is FAILED")
        labs = self.sources.labs
        with LostLabs(labs=labs, objects=self._objects, as_of=self.as_of, restarts=self.restarts) as lost:
            changed = lost.fail(record, error, row)
        if not changed:
            return False, _MEANWHILE
        self._failed.add(row.id)
        self.restarted += "started_again_as" in record.details
        if lost.left is not None:
            return True, f"the lab is FAILED; its objects are left: {lost.left}"
        return True, f"the lab is FAILED, {lost.deleted} objects are deleted"

    def _is_there(self, one: Difference) -> bool:
        """Tell whether what was missing is there after all, perhaps without our labels."""
        kind, _, name = one.object.partition(" ")
        found = self._objects.find_named(kind, name)
        if found is None:
            return False
        item = make_object(kind, found)
        if one.lab_object is None or item.uid != one.lab_object.uid:
            return True
        return item.status.state not in (State.GOING, State.LOST)

    def _repair_messages(self, differences: list[Difference]) -> Iterator[_Result]:
        if self.sources.broker is None:
            return
        try:
            opened = Queues(self.sources.broker, stop=self.sources.stop)
        except BrokerAway as exc:
            yield from ((one, False, f"not repaired: {exc}") for one in differences)
            return
        with closing(opened) as queues:
            useless: dict[str, list[Difference]] = defaultdict(list)
            for one in differences:
                if one.message is not None:
                    useless[one.message.queue].append(one)
                else:
                    yield one, *_attempt(lambda one: self._publish_delete(one, queues), one)
            for queue, some in useless.items():
                yield from self._discard(queue, some, queues)

    def _publish_delete(self, one: Difference, queues: Queues) -> _Done:
        row = self._row(one)
        if row is None or not row.stopping:
            return False, _MEANWHILE
        # The name in the row may be odd, and labels find the Pod as well.
        kwargs = {"lab_instance_id": row.id, "force": True}
        task = TaskMessage(name=DELETE_LAB_POD, id=new_task_id(), kwargs=kwargs)
        queues.publisher.publish_task(task)
        return self._done(one, "published its delete", delete_task_id=task.id)

    def _discard(self, queue: str, differences: list[Difference], queues: Queues) -> Iterator[_Result]:
        wanted = {one.message: one for one in differences}
        ended: dict[Message | None, _Done] = {}

        def discard(seen: Message) -> bool:
            one = wanted.get(seen)
            if one is None:
                return False
            row = self._row(one)
            if row is None or one.row is None or row.status != one.row.status:
                return False
            # In the ledger before it is gone: a crash in between leaves the message.
            ended[seen] = self._done(
                one, "took the message away", task_id=seen.task_id, task_name=seen.task_name, queue=queue
            )
            return True

        try:
            with walk_lock(self.sources.labs, self.sources.stop):
                for _ in walk(queues, queue, gap=lambda _gap: None, discard=discard):
                    pass
        except (BrokerAway, Busy, JobError) as exc:
            yield from (
                (one, *ended.get(one.message, (False, f"not repaired: {_told(exc)}"))) for one in differences
            )
            return
        gone = (True, "a container has taken the message")
        yield from ((one, *ended.get(one.message, gone)) for one in differences)

    def _row(self, one: Difference) -> LabRow | None:
        return None if one.lab is None else next(some_rows(self.sources.labs, [one.lab]), None)

    def _done(self, one: Difference, done: str, **details: object) -> _Done:
        self.sources.labs.record(self._record(one, done, **details), Ending("succeeded"))
        return True, done

    def _record(self, one: Difference, done: str, **details: object) -> TaskRunRecord:
        return TaskRunRecord(
            task_id=new_task_id(),
            task_name=self.task_name,
            pod_name=self.pod_name,
            lab_instance_id=one.lab,
            details={"difference": one.kind.value, "object": one.object, "found": one.seen, "done": done}
            | details,
        )
