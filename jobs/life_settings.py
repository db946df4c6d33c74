"""The platform's settings for what happens to labs that run; an object in the store that operators edit."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

from jobs.templates import parse_mapping, template_error

#: Causes of jobs.failures for which a lab can be started again: what took its Pod away was not the lab.
RESTARTABLE = ("pod_gone", "pod_evicted", "node_away")


@dataclass(frozen=True, slots=True, kw_only=True)
class LifeSettings:
    """When labs end, and what is done about those that break; each field is a key of the YAML object."""

    #: Minutes after its start at which a lab ends, whatever its expires_at is, but not before an end that an
    #: extension confirmed; 0: never for that alone.
    max_age_minutes: int = 1440
    #: Minutes after its request at which a lab that never became usable is given up.
    pending_limit_minutes: int = 60
    #: Minutes before its end at which a student is warned, the earliest first; none: cleanup_max_share is 1.
    warn_minutes: list[int] = field(default_factory=lambda: [15, 5])
    #: The most of all live labs that one cleanup may end without their having been warned.
    cleanup_max_share: float = 0.5
    #: So many it may end in any case.
    cleanup_always: int = 5
    #: Seconds by which the clocks of database and container may differ before a cleanup refuses to go on.
    max_clock_skew_s: int = 300
    #: Seconds for which the Pod of a RUNNING lab may be not Ready before the lab fails.
    unready_limit_s: int = 120
    #: Starts of its program after which a lab that is not Ready counts as crash-looping.
    crash_limit: int = 3
    #: The most of all RUNNING labs that one health check or sync may fail.
    fail_max_share: float = 0.2
    #: So many it may fail in any case.
    fail_always: int = 10
    #: Causes for which another lab is started in place of the one that failed.
    restart_causes: list[str] = field(default_factory=list)
    #: How often in a row that is done for one student.
    max_restarts: int = 1
    #: Seconds for which an object or a request may be without its row or message: it may be under way.
    orphan_grace_s: int = 120
    #: Days for which the ledger keeps the runs of periodic tasks.
    keep_periodic_runs_days: int = 14


#: Field -> least and greatest value.
_RANGES: dict[str, tuple[float, float]] = {
    "max_age_minutes": (0, 525_600),
    "pending_limit_minutes": (1, 525_600),
    "cleanup_max_share": (0, 1),
    "cleanup_always": (0, 1_000_000),
    "max_clock_skew_s": (1, 86_400),
    "unready_limit_s": (10, 86_400),
    "crash_limit": (1, 1000),
    "fail_max_share": (0, 1),
    "fail_always": (0, 1_000_000),
    "max_restarts": (0, 10),
    "orphan_grace_s": (30, 86_400),
    "keep_periodic_runs_days": (1, 3650),
}


def parse_life_settings(name: str, content: bytes) -> LifeSettings:
    """Return the settings, or raise JobError naming the key that is wrong."""
    document = parse_mapping(name, content)
    known = [f.name for f in fields(LifeSettings)]
    if unknown := sorted(map(str, set(document) - set(known))):
        raise template_error(name, f"has unknown {', '.join(unknown)}; allowed are {', '.join(known)}")
    problems = [f"{key}: {problem}" for key, value in document.items() if (problem := _problem(key, value))]
    if problems:
        raise template_error(name, "; ".join(problems))
    settings = LifeSettings(**document)
    if not settings.warn_minutes and settings.cleanup_max_share < 1:
        unwarned = "warn_minutes: without warnings no end is known before, so cleanup_max_share must be 1"
        raise template_error(name, unwarned)
    return settings


def _problem(key: str, value: Any) -> str | None:
    if key == "warn_minutes":
        valid = isinstance(value, list) and all(type(one) is int and 1 <= one <= 1440 for one in value)
        falling = valid and all(a > b for a, b in pairwise(value))
        return None if falling else "must be a list of minutes from 1440 to 1, each less than the one before"
    if key == "restart_causes":
        valid = isinstance(value, list) and all(one in RESTARTABLE for one in value)
        return None if valid else f"must be a list; allowed are {', '.join(RESTARTABLE)}"
    least, most = _RANGES[key]
    whole = not key.endswith("_share")
    number = type(value) is int or (type(value) is float and not whole)
    if number and least <= value <= most:
        return None
    return f"must be {'an integer' if whole else 'a number'} from {least} to {most}"
