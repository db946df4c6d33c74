"""What keeps a cleanup from emptying the platform: a wrong clock, or too many ends that nobody knew of.

A class that ends at eleven was to be warned at a quarter to, so that it counts for nothing here, however
large it is, and whether or not the broker took the warnings. Labs that a jumped clock or a bad UPDATE ends
have none. A stop that is asked for again ends nothing new.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from jobs.brake import most_at_once
from jobs.database.due_rows import DueLab, clock
from jobs.database.lab_store import LabStore
from jobs.errors import JobError
from jobs.failures import Failure
from jobs.life_settings import LifeSettings


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a cleanup deletes nothing, and the figures that say so."""

    failure: Failure
    problem: str
    facts: dict[str, Any]

    def error(self) -> JobError:
        """Return the error of the run."""
        return self.failure.error(problem=self.problem)


def compare_clocks(labs: LabStore, settings: LifeSettings) -> Refusal | None:
    """Return why the clocks are not believed: which of the two is wrong, nobody can tell here."""
    before = datetime.now(timezone.utc)
    started = time.monotonic()
    database, database_says = labs.at_once(clock)
    half_s = (time.monotonic() - started) / 2
    apart_s = abs(database - before.timestamp() - half_s)
    # The answer may have been on its way for any part of the time.
    if apart_s - half_s <= settings.max_clock_skew_s:
        return None
    facts = {
        "database_clock": database_says,
        "container_clock": before.isoformat(timespec="seconds"),
        "apart_s": round(apart_s),
    }
    problem = (
        f"the clocks of the database ({facts['database_clock']}) and of this container"
        f" ({facts['container_clock']}) are {facts['apart_s']} s apart; at most"
        f" {settings.max_clock_skew_s} s are allowed"
    )
    return Refusal(Failure.CLOCKS_DIFFER, problem, facts)


def count_unannounced(due: Sequence[DueLab], live: int, settings: LifeSettings) -> Refusal | None:
    """Return why not so many labs are ended, of which nobody was told."""
    unannounced = sum(lab.unannounced for lab in due)
    most = most_at_once(live, share=settings.cleanup_max_share, always=settings.cleanup_always)
    if unannounced <= most:
        return None
    problem = (
        f"{unannounced} of {live} live labs would end without having been warned, or by max_age_minutes"
        f" before their own end; at most {most} may:"
        f" {settings.cleanup_max_share:.0%} of all, or {settings.cleanup_always} (settings/lab-life.yaml)."
        " Look at max_age_minutes, lab_instances.expires_at, the database's clock and the warnings"
        " (notifications)"
    )
    facts = {"due": len(due), "unannounced": unannounced, "live": live, "allowed": most}
    return Refusal(Failure.TOO_MANY_AT_ONCE, problem, facts)
