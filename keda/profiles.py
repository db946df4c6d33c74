"""Say for each queue how many containers may serve it, and how many wait for it ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dispatcher.broker.topology import QUEUE_HIGH, QUEUE_LOW, QUEUE_NORMAL

#: Seconds that one message may take: four Ready timeouts on the last of four attempts (4 x 60 s),
#: 60 s for what an earlier attempt left to go, and a database or API server that restarts meanwhile.
WORST_CASE_S = 600
#: RabbitMQ takes a message back after 30 minutes (consumer_timeout); a container ends before that.
CONSUMER_TIMEOUT_S = 1800
#: Seconds a spare waits. Ten minutes cost six container starts an hour; KEDA replaces it in a second.
_SPARE_WAIT_S = 600
#: Seconds without spares: longer than a failover of the broker, short enough to scale to zero.
_COLD_WAIT_S = 8


class InvalidProfile(ValueError):
    """Raised for a profile that KEDA would refuse or that could not work; names every problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The differences between the ScaledJobs."""

    name: str
    queue: str
    #: high, normal or low; a label for people.
    priority: str
    #: What the queue carries; a label for people.
    task: str
    #: Containers at once, spares included: what API server, database and nodes see at most.
    max_replicas: int
    #: Containers at once for each core of the nodes, when these are known: the start of a container costs the
    #: node about a CPU second, and KEDA starts as many at once as there are messages, whatever they are. With
    #: fewer than a class of 30 on two cores its last labs would wait for a Job of the first to be Complete.
    per_core: int
    #: Containers kept started and connected, waiting for a message (minReplicaCount). KEDA 2.20.2
    #: starts `spares - unfinished Jobs` whatever the queue holds, and when none is missing
    #: `min(messages, max - spares) - Jobs not Ready` (scale_jobs.go). So a spare that waits stands
    #: for one message; one that works is Ready, and is replaced only when its Job ends.
    spares: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.max_replicas < 1:
            problems.append(f"max_replicas of {self.name} is {self.max_replicas}; allowed is 1 or more")
        # With all of them spares, KEDA would start nothing for the messages beyond them.
        elif not 0 <= self.spares < self.max_replicas:
            problems.append(
                f"spares of {self.name} is {self.spares}; allowed is 0 to {self.max_replicas - 1},"
                " less than max_replicas"
            )
        if self.active_deadline_s >= CONSUMER_TIMEOUT_S:
            problems.append(
                f"{self.name} may wait {self.claim_wait_s} s and work {WORST_CASE_S} s; allowed is less than"
                f" {CONSUMER_TIMEOUT_S} s in all, or the broker takes its message back"
            )
        if problems:
            raise InvalidProfile("; ".join(problems))

    @property
    def claim_wait_s(self) -> int:
        """Seconds a container waits for a message; one that found none is a spare for as long."""
        return _SPARE_WAIT_S if self.spares else _COLD_WAIT_S

    @property
    def active_deadline_s(self) -> int:
        """Seconds after which Kubernetes ends a Job; one that never gets Ready hides a message till then."""
        return self.claim_wait_s + WORST_CASE_S


PROFILES = (
    # A delete takes a second or two, so 40 keep up with any class; its own limit keeps a thousand
    # creates from delaying a stop. The spare is there when the nodes are full and nothing new fits.
    Profile(
        name="lab-operations-high",
        queue=QUEUE_HIGH,
        priority="high",
        task="delete-scale-health",
        max_replicas=40,
        per_core=16,
        spares=1,
    ),
    # A class of 100 in one go; what the nodes start per second is the real bound. The spare saves a
    # student who comes alone the start of a container.
    Profile(
        name="lab-operations",
        queue=QUEUE_NORMAL,
        priority="normal",
        task="create",
        max_replicas=100,
        per_core=16,
        spares=1,
    ),
    # Nobody waits for periodic work, so it scales to zero; 5, so that one that hangs blocks nothing.
    Profile(
        name="lab-cleanup",
        queue=QUEUE_LOW,
        priority="low",
        task="cleanup-sync",
        max_replicas=5,
        per_core=3,
    ),
)


def fitted_to(profiles: tuple[Profile, ...], cores: float) -> tuple[Profile, ...]:
    """Return the profiles with no more containers at once than nodes of so many cores start in seconds."""
    return tuple(
        replace(
            profile,
            max_replicas=min(profile.max_replicas, max(profile.spares + 1, int(profile.per_core * cores))),
        )
        for profile in profiles
    )


#: Stands for every profile in an override.
EVERY = "*"


def with_overrides(
    profiles: tuple[Profile, ...],
    *,
    spares: Mapping[str, int] | None = None,
    max_replicas: Mapping[str, int] | None = None,
) -> tuple[Profile, ...]:
    """Return the profiles with other numbers by profile name; a name wins over EVERY.

    Raises InvalidProfile if a name is unknown, or a profile would not work with its new numbers.
    """
    spares, max_replicas = spares or {}, max_replicas or {}
    names = [profile.name for profile in profiles]
    problems = [
        f"{field}: no profile {name!r}; allowed are {', '.join(names)}"
        for field, numbers in (("spares", spares), ("max_replicas", max_replicas))
        for name in numbers
        if name not in (*names, EVERY)
    ]
    changed = []
    for profile in profiles:
        try:
            changed.append(
                replace(
                    profile,
                    spares=_number(spares, profile.name, profile.spares),
                    max_replicas=_number(max_replicas, profile.name, profile.max_replicas),
                )
            )
        except InvalidProfile as exc:
            problems.append(str(exc))
    if problems:
        raise InvalidProfile("; ".join(problems))
    return tuple(changed)


def _number(numbers: Mapping[str, int], name: str, default: int) -> int:
    return numbers.get(name, numbers.get(EVERY, default))
