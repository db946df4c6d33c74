"""One profile per queue: how many containers may serve it, and how many wait for it ahead of time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dispatcher.topology import QUEUE_HIGH, QUEUE_LOW, QUEUE_NORMAL


class InvalidProfile(ValueError):
    """Raised for a profile that KEDA would refuse or that could not work."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What differs between the ScaledJobs."""

    name: str
    queue: str
    #: high, normal or low; a label for people.
    priority: str
    #: What the queue carries; a label for people.
    task: str
    #: Containers at once: an upper bound for what the API server and the database see.
    max_replicas: int
    #: Containers kept started and connected, waiting for a message (minReplicaCount). KEDA counts
    #: unfinished Jobs, so while a spare works nobody waits in its place (scale_jobs.go of 2.20.2).
    spares: int
    #: Seconds a container waits for a message. A spare is replaced after this; a container that
    #: found nothing becomes one more spare for as long.
    claim_wait_s: int

    def __post_init__(self) -> None:
        if not 0 <= self.spares < self.max_replicas:
            raise InvalidProfile(
                f"{self.name}: spares is {self.spares}; allowed are 0 to {self.max_replicas - 1},"
                " below max_replicas"
            )


#: Seconds: three Ready timeouts of the last attempt (60 s each), taking down, a database that restarts.
WORST_CASE_S = 300
#: Ten minutes idle cost a container start per queue and ten minutes; KEDA replaces it in a second or two.
_SPARE_WAIT_S = 600
#: Longer than one failover of the broker; there are no spares, so an extra container should leave soon.
_COLD_WAIT_S = 8

PROFILES = (
    # Deletes free places and are short, so they get fewer, but never wait behind creates.
    Profile("lab-operations-high", QUEUE_HIGH, "high", "delete-scale-health", 40, 1, _SPARE_WAIT_S),
    # A class of 300: bounded by what the nodes start per second, not by this.
    Profile("lab-operations", QUEUE_NORMAL, "normal", "create", 100, 1, _SPARE_WAIT_S),
    # Nobody waits for periodic work, so scale to zero.
    Profile("lab-cleanup", QUEUE_LOW, "low", "cleanup-sync", 5, 0, _COLD_WAIT_S),
)


def with_spares(profiles: tuple[Profile, ...], overrides: dict[str, int]) -> tuple[Profile, ...]:
    """Return the profiles with other numbers of spares; the key "*" stands for all of them."""
    names = {profile.name for profile in profiles}
    if unknown := sorted(set(overrides) - names - {"*"}):
        raise InvalidProfile(f"unknown profile {', '.join(unknown)}; allowed are {', '.join(sorted(names))}")
    changed = []
    for profile in profiles:
        spares = overrides.get(profile.name, overrides.get("*", profile.spares))
        wait_s = _SPARE_WAIT_S if spares else _COLD_WAIT_S
        changed.append(replace(profile, spares=spares, claim_wait_s=wait_s))
    return tuple(changed)
