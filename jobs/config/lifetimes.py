"""Say when labs end and what is done about broken ones: settings in the store that operators edit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any

from jobs.config.settings_document import Problem, Rule, list_of, one_of, whole

#: Causes of jobs.failures for which a lab can be started again: what took its Pod away was not the lab.
RESTARTABLE = ("pod_gone", "pod_evicted", "node_away")


def _is_falling(value: Any) -> bool:
    minutes = isinstance(value, list) and all(type(one) is int and 1 <= one <= 1440 for one in value)
    return minutes and all(a > b for a, b in pairwise(value))


_SHARE = Rule(
    "a number from 0 to 1",
    {"type": "number", "minimum": 0, "maximum": 1},
    lambda value: type(value) in (int, float) and 0 <= value <= 1,
)
_WARNINGS = Rule(
    "a list of minutes from 1440 to 1, each less than the one before",
    {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 1440}},
    _is_falling,
)
_CAUSES = list_of(one_of(*RESTARTABLE), f"a list; allowed are {', '.join(RESTARTABLE)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LifeSettings:
    """The ends of labs, and what is done about those that break."""

    #: Minutes after its start at which a lab ends, whatever its expires_at is, but not before an end that an
    #: extension confirmed; 0: never for that alone.
    max_age_minutes: Annotated[int, whole(0, 525_600)] = 1440
    #: Minutes after its request at which a lab that never became usable is given up.
    pending_limit_minutes: Annotated[int, whole(1, 525_600)] = 60
    #: Minutes before its end at which a student is warned, the earliest first; [] warns nobody, and needs
    #: cleanup_max_share: 1.
    warn_minutes: Annotated[list[int], _WARNINGS] = field(default_factory=lambda: [15, 5])
    #: The most of all live labs that one cleanup may end without their having been warned.
    cleanup_max_share: Annotated[float, _SHARE] = 0.5
    #: Labs that a cleanup may end in any case, however few are live.
    cleanup_always: Annotated[int, whole(0, 1_000_000)] = 5
    #: Seconds by which the clocks of database and container may differ before a cleanup refuses to go on.
    max_clock_skew_s: Annotated[int, whole(1, 86_400)] = 300
    #: Seconds for which the Pod of a RUNNING lab may be not Ready before the lab fails.
    unready_limit_s: Annotated[int, whole(10, 86_400)] = 120
    #: Starts of its program after which a lab that is not Ready counts as crash-looping.
    crash_limit: Annotated[int, whole(1, 1000)] = 3
    #: The most of all RUNNING labs that one health check or sync may fail.
    fail_max_share: Annotated[float, _SHARE] = 0.2
    #: Labs that a health check or sync may fail in any case.
    fail_always: Annotated[int, whole(0, 1_000_000)] = 10
    #: Causes for which another lab is started in place of the one that failed.
    restart_causes: Annotated[list[str], _CAUSES] = field(default_factory=list)
    #: How often in a row that is done for one student.
    max_restarts: Annotated[int, whole(0, 10)] = 1
    #: Seconds for which an object or a request may be without its row or message: it may be under way.
    orphan_grace_s: Annotated[int, whole(30, 86_400)] = 120
    #: Days for which the ledger keeps the runs of periodic tasks.
    keep_periodic_runs_days: Annotated[int, whole(1, 3650)] = 14

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Iterator[Problem]:
        """Yield warnings that are left out where a cleanup counts on them."""
        if values.get("warn_minutes") == [] and values.get("cleanup_max_share", 1) < 1:
            text = "without warnings no end is known before, so cleanup_max_share must be 1"
            yield ("warn_minutes",), text
