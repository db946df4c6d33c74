"""Hold what one look found, in a form that stays small: a few hundred bytes per lab, object and message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime

from jobs.cluster.pod_status import PodStatus
from jobs.database.snapshot_rows import LabRow

#: Seconds for which an object or a request may be otherwise: what makes or takes it may be under way.
GRACE_S = 60.0


@dataclass(frozen=True, slots=True)
class LabObject:
    """A Pod, Service or NetworkPolicy of ours, by its labels."""

    kind: str
    name: str
    uid: str
    #: These three are None where the labels do not say.
    lab: int | None
    lab_id: str | None
    student_id: str | None
    created_at: datetime
    #: When a deletion that is under way has to be done.
    deleted_by: datetime | None
    owner_uids: tuple[str, ...]
    #: Status of a Pod; an object without phase or condition is UNREADY or GOING.
    status: PodStatus
    #: When a Pod became Ready, or stopped being so.
    ready_since: datetime | None = None
    #: None: a release before this one made it.
    object_label: str | None = None
    #: The address of a Service.
    address: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Message:
    """A task that waits in a queue; `lab` is None if it is about none, or cannot be read."""

    queue: str
    task_id: str
    task_name: str
    lab: int | None
    published_at: datetime | None

    @property
    def verb(self) -> str:
        return self.task_name.rpartition(".")[2]


@dataclass(slots=True)
class QueueContents:
    """Messages on the broker."""

    messages: list[Message] = field(default_factory=list)
    #: Messages on the delay ladder and in the dead-letter queue, whose content nobody looked at.
    delayed: int = 0
    dead_letters: int = 0
    #: How many of `delayed`, at least, wait for their next attempt by the ledger.
    known_delays: int = 0
    #: Queue -> messages that consumers hold, by the management API; None: it was not asked.
    unacked: dict[str, int] | None = None
    #: What could not be looked at, in plain words; nothing is proven lost then.
    gaps: list[str] = field(default_factory=list)
    #: Queue -> messages that were counted and not looked into (jobs.verify.queues).
    unread: dict[str, int] = field(default_factory=dict)

    @property
    def unknown_delays(self) -> int:
        """Messages on the delay ladder that may be about any lab: of a task with an eta, for example."""
        return max(0, self.delayed - self.known_delays)

    def held(self, runs: Mapping[str, int]) -> dict[str, int]:
        """Return queue -> messages that consumers hold beyond the runs that the ledger knows."""
        excess = {queue: count - runs.get(queue, 0) for queue, count in (self.unacked or {}).items()}
        return {queue: count for queue, count in excess.items() if count > 0}


@dataclass(slots=True)
class Inventory:
    """One look at rows, objects and messages. Times are the database's."""

    now: datetime
    _: KW_ONLY
    grace_s: float = GRACE_S
    #: The live labs, and those that are over but have an object or a message.
    rows: dict[int, LabRow] = field(default_factory=dict)
    objects: list[LabObject] = field(default_factory=list)
    #: There is no object of ours, and the namespace is under a policy, as that of labs is.
    empty_but_governed: bool = False
    #: None: the broker was not looked at.
    queues: QueueContents | None = None
    #: (lab, task name) of what waits in the outbox.
    outbox: set[tuple[int, str]] = field(default_factory=set)
    #: (lab, task name) of what is under way or tried again, by the ledger, for the unattended labs.
    going_on: set[tuple[int, str]] = field(default_factory=set)
    #: When a container was at an unattended lab last.
    last_run_at: dict[int, datetime] = field(default_factory=dict)
    #: Until when the objects of a FAILED lab stay.
    kept_until: dict[int, datetime] = field(default_factory=dict)
    #: Queue -> runs under way.
    under_way: dict[str, int] = field(default_factory=dict)
    #: When a lab was asked for whose create has overtaken those of older labs, if they still wait.
    overtaken_by: datetime | None = None
    #: The newest id that a lab ever had; None: unknown, so that an object without a row may be anybody's.
    last_lab: int | None = None
    #: URLs of labs have their Service's address as host, by the settings; False: or nobody knows.
    urls_name_address: bool = False
    #: Seconds by which the API server's clock, that of all objects, is ahead of the database's.
    cluster_ahead_s: float = 0.0

    @property
    def live(self) -> Iterable[LabRow]:
        """The labs that are PENDING, RUNNING or stopping."""
        return (row for row in self.rows.values() if not row.over)
