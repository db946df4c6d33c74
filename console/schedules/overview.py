"""Compare the stored schedules with the cluster, for `autolabs schedule list` and `show`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import islice

from console.schedules.cron_jobs import (
    CronJobs,
    desired,
    differences,
    image_of,
    is_ours,
    job_duration_s,
    job_outcome,
)
from cronjobs.cron import parse_cron
from cronjobs.manifests import SCHEDULE_LABEL, make_cron_job
from cronjobs.timetable import Schedule, zone_of
from dispatcher.wording import ago, duration, table
from jobs.cluster.client import Manifest, api_time

#: Number of coming runs that `show` names.
_NEXT_RUNS = 3
_HEADS = ("NAME", "SCHEDULE", "TIME ZONE", "SUSPENDED", "LAST RUN", "OUTCOME", "NEXT RUN", "IN THE CLUSTER")


@dataclass(frozen=True, slots=True)
class Row:
    """One schedule as it is in the cluster, or as it is stored where the cluster has none."""

    name: str
    schedule: str
    time_zone: str
    suspended: bool
    #: The begin of the latest Job, or of the run that the CronJob remembers.
    last_run: datetime | None
    #: succeeded, failed, running or unknown.
    last_outcome: str
    last_duration_s: float | None
    next_run: datetime | None
    #: as stored, differs, missing, not stored, suspended by hand.
    state: str
    differences: tuple[str, ...] = ()


def overview(cron_jobs: CronJobs, schedules: Mapping[str, Schedule]) -> list[Row]:
    """Return a row for each schedule that is stored or in the cluster."""
    live = {name: item for name, item in cron_jobs.live().items() if is_ours(item) or name in schedules}
    latest: dict[str, Manifest] = {}
    for job in cron_jobs.jobs():
        latest.setdefault(job["metadata"]["labels"][SCHEDULE_LABEL], job)
    now = datetime.now(timezone.utc)
    return [
        _row(now, name, schedules.get(name), live, latest.get(name), cron_jobs.namespace)
        for name in [*schedules, *(name for name in live if name not in schedules)]
    ]


def next_runs(schedule: str, time_zone: str, now: datetime) -> Iterator[datetime]:
    """Yield when a schedule comes, without end; nothing if this machine does not know its time zone."""
    zone = zone_of(time_zone)
    try:
        cron = parse_cron(schedule)
    except ValueError:
        return  # changed by hand to what only Kubernetes takes
    moment: datetime | None = now
    while zone and moment and (moment := cron.next_after(moment, zone)):
        yield moment


def as_table(rows: list[Row]) -> str:
    now = datetime.now(timezone.utc)
    shown: list[tuple[object, ...]] = [_HEADS]
    for row in rows:
        took = "" if row.last_duration_s is None else f" in {duration(row.last_duration_s)}"
        shown.append(
            (
                row.name,
                row.schedule,
                row.time_zone,
                "yes" if row.suspended else "no",
                ago(now, row.last_run) if row.last_run else "never",
                row.last_outcome + took,
                ago(now, row.next_run) if row.next_run else "-",
                row.state,
            )
        )
    return table(shown)


def entry_fields(entry: Schedule) -> list[tuple[str, str]]:
    """Return everything of an entry, and when it comes next by the clocks of its time zone."""
    found = next_runs(entry.schedule, entry.time_zone, datetime.now(timezone.utc))
    zone = zone_of(entry.time_zone) or timezone.utc
    comes = [f"{moment.astimezone(zone):%Y-%m-%d %H:%M}" for moment in islice(found, _NEXT_RUNS)]
    values = {**asdict(entry), "next runs": ", ".join(comes) or "not known here"}
    shown = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return [(f"{key}:", text) for key, text in shown.items() if text not in ("null", "{}")]


def _row(
    now: datetime,
    name: str,
    stored: Schedule | None,
    live: Mapping[str, Manifest],
    job: Manifest | None,
    namespace: str,
) -> Row:
    item = live.get(name)
    spec: Manifest = item["spec"] if item else {}
    schedule = spec.get("schedule") or (stored.schedule if stored else "")
    time_zone = spec.get("timeZone") or (stored.time_zone if stored else "Etc/UTC")
    suspended = bool(spec.get("suspend"))
    comes = next_runs(schedule, time_zone, now) if item and not suspended else iter(())
    last_run, outcome, took = _last_run(item, job)
    lines = _lines(name, stored, live, namespace)
    return Row(
        name=name,
        schedule=schedule,
        time_zone=time_zone,
        suspended=suspended,
        last_run=last_run,
        last_outcome=outcome,
        last_duration_s=took,
        next_run=next(comes, None),
        state=_state(stored, item, lines),
        differences=lines,
    )


def _last_run(item: Manifest | None, job: Manifest | None) -> tuple[datetime | None, str, float | None]:
    if job is not None:
        return api_time(job["metadata"]["creationTimestamp"]), job_outcome(job)[0], job_duration_s(job)
    status = item.get("status", {}) if item else {}
    scheduled, succeeded = (api_time(status.get(f"last{key}Time")) for key in ("Schedule", "Successful"))
    if scheduled is None:
        return None, "", None
    return scheduled, "succeeded" if succeeded and succeeded >= scheduled else "unknown", None


def _lines(
    name: str, stored: Schedule | None, live: Mapping[str, Manifest], namespace: str
) -> tuple[str, ...]:
    if stored is None or name not in live or not is_ours(live[name]):
        return ()
    # The image is no part of the schedules.
    wanted = make_cron_job(stored, image=image_of(name, live) or "", namespace=namespace)
    return tuple(differences(desired(live[name]), desired(wanted), all_keys=False))


def _state(stored: Schedule | None, item: Manifest | None, lines: tuple[str, ...]) -> str:
    if item is None:
        return "missing"
    if not is_ours(item):
        return "somebody else's"
    if stored is None:
        return "not stored"
    if lines:
        return "differs"
    by_hand = item["spec"].get("suspend") and stored.suspend is None
    return "suspended by hand" if by_hand else "as stored"
