"""Refuse a run over all labs: too many would end or fail at once, or a clock or the cluster is not believed.

A wrong kubeconfig, or an API server that answers with nothing, shows an empty cluster; a wrong DATABASE_URL
shows an empty platform or, as ids begin at 1 everywhere, other labs of the same ids; a wrong clock makes
everything old. Cleanup, health check, sync and verify ask here before they change anything.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from dispatcher.wording import many
from jobs.config.lifetimes import LifeSettings
from jobs.database.due_rows import clock
from jobs.database.lab_store import LabStore
from jobs.errors import JobError
from jobs.failures import Failure

#: Labs without any Pod that mean a wrong cluster, even where something else says that it is the right one.
FEW = 3
#: Seconds by which clocks may differ whatever the grace age is: they are read one after the other.
BLUR_S = 10.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a run changes nothing, with figures for the log."""

    failure: Failure
    sentence: str
    facts: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.sentence

    def error(self, *, evidence: str = "") -> JobError:
        return self.failure.error(problem=self.sentence, evidence=evidence)


def too_many_at_once(affected: int, live: int, *, share: float, always: int, says: str) -> Refusal | None:
    """Refuse to change so many of the live labs in one run; `says` has a place for {most}."""
    most = _most_at_once(live, share=share, always=always)
    return _not_believed(says.format(most=most)) if affected > most else None


def another_database(*, strange: int, matched: int) -> Refusal | None:
    """Refuse where objects are hardly those of the labs in the rows.

    `strange`: labs of which an object names another lab or student than the row; `matched`: labs of which
    none does. One may be anybody's mistake; in another database it is nearly all of them.
    """
    if not strange or strange < matched:
        return None
    labs = f"{many(strange, 'lab')} with objects of another lab or student than the row"
    return _not_believed(f"{labs}: this may be another database")


def no_rows_at_all(*, with_objects: int, with_row: int) -> Refusal | None:
    """Refuse where not one of the labs that have objects has a row."""
    if with_objects < FEW or with_row:
        return None
    labs = f"none of the {with_objects} labs with objects has a row"
    return _not_believed(f"{labs}: this may be another database")


def no_pods_at_all(running: int, without_pod: int, *, believed: int) -> Refusal | None:
    """Refuse where not one RUNNING lab has a Pod; of at most `believed` labs that is no wonder."""
    if without_pod < running or running <= believed:
        return None
    none = f"none of the {running} RUNNING labs has" if running > 1 else "the RUNNING lab has not"
    return _not_believed(f"{none} a Pod: this may be another cluster or namespace")


def unannounced_ends(*, due: int, unannounced: int, live: int, settings: LifeSettings) -> Refusal | None:
    """Refuse to end many labs of whose end nobody was told.

    A class that ends at eleven was to be warned at a quarter to, so that it counts for nothing here, however
    large it is, and whether or not the broker took the warnings. Labs that a jumped clock or a bad UPDATE
    ends have none. A stop that is asked for again ends nothing new.
    """
    most = _most_at_once(live, share=settings.cleanup_max_share, always=settings.cleanup_always)
    if unannounced <= most:
        return None
    return _not_believed(
        f"{unannounced} of {live} live labs would end without having been warned, or by max_age_minutes"
        f" before their own end; at most {most} may:"
        f" {settings.cleanup_max_share:.0%} of all, or {settings.cleanup_always} (settings/lab-life.yaml)."
        " Look at max_age_minutes, lab_instances.expires_at, the database's clock and the warnings"
        " (notifications)",
        due=due,
        unannounced=unannounced,
        live=live,
        allowed=most,
    )


def container_clock_differs(labs: LabStore, settings: LifeSettings) -> Refusal | None:
    """Refuse where database and container disagree: which of the two is wrong, nobody can tell here."""
    before = datetime.now(timezone.utc)
    started = time.monotonic()
    database, database_says = clock(labs)
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
    sentence = (
        f"the clocks of the database ({facts['database_clock']}) and of this container"
        f" ({facts['container_clock']}) are {facts['apart_s']} s apart; at most"
        f" {settings.max_clock_skew_s} s are allowed"
    )
    return Refusal(Failure.CLOCKS_DIFFER, sentence, facts)


def cluster_clock_differs(*, ahead_s: float, grace_s: float) -> Refusal | None:
    """Refuse where database and API server disagree: the ages of rows and of objects are made of these."""
    apart_s, most_s = round(abs(ahead_s)), max(grace_s / 2, BLUR_S)
    if apart_s <= most_s:
        return None
    sentence = (
        f"the clocks of the API server and the database are {apart_s} s apart; at most {most_s:g} s are"
        " allowed, half of the grace age"
    )
    return Refusal(Failure.CLOCKS_DIFFER, sentence)


def _most_at_once(live: int, *, share: float, always: int) -> int:
    return max(always, round(share * live))


def _not_believed(sentence: str, **facts: int) -> Refusal:
    return Refusal(Failure.TOO_MANY_AT_ONCE, sentence, facts)
