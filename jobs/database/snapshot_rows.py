"""Read all labs at one moment: live labs page by page, and what is known of the tasks of some of them.

Read by verify, sync and the health check. Each page is a statement of its own, so that none takes long.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from dispatcher.broker.topology import QUEUE_NORMAL
from dispatcher.failure_contract import COME_BACK_S
from dispatcher.stored_times import EARLIEST, is_odd
from dispatcher.tasks import CREATE_LAB_POD
from jobs.config.naming import LabIdentity
from jobs.database.connection import Database
from jobs.database.ledger import may_go_on
from jobs.database.object_label import OBJECT_LABEL

logger = logging.getLogger(__name__)

#: Rows per statement.
PAGE = 1000
#: Seconds of the longest delay between attempts.
LONGEST_DELAY_S = 3600
#: Most labs among which the newest that was begun is looked for.
NEWEST_LABS = 20_000
#: Seconds for which a task surely still waits on the ladder, after the database may have been slow.
SURE_S = 10

_ROW = (
    "id, lab_id, student_id, status, k8s_pod_name, created_at, updated_at, stop_requested_at,"
    " CASE status WHEN 'STOPPED' THEN coalesce(stopped_at, updated_at)"
    " WHEN 'FAILED' THEN coalesce(failed_at, updated_at) ELSE updated_at END,"
    f" {OBJECT_LABEL}, connection_url"
)
# Read the clock by which all ages are taken.
_NOW = "SELECT now()"
# List live labs, a page.
_LIVE = f"""
SELECT {_ROW} FROM lab_instances
 WHERE id > %s AND status IN ('PENDING', 'RUNNING') ORDER BY id LIMIT %s
"""  # noqa: S608  # constants of this module
# Read some labs.
_SOME = f"SELECT {_ROW} FROM lab_instances WHERE id = ANY(%s)"  # noqa: S608
# List the tasks of labs that wait to be published, a page.
_OUTBOX = """
SELECT id, lab_instance_id, task_name FROM task_outbox WHERE id > %s AND lab_instance_id IS NOT NULL
 ORDER BY id LIMIT %s
"""


def _delay(come_back_s: float) -> str:
    return f"make_interval(secs => coalesce(CAST(details ->> 'retry_delay_s' AS float), {come_back_s}))"


#: A task that comes back without a delay of its own waits between half and all of COME_BACK_S.
_LEAST_DELAY, _DELAY = _delay(COME_BACK_S / 2), _delay(COME_BACK_S)
# List the runs of some labs that go on, or are tried again.
_RUNS = f"""
SELECT lab_instance_id, task_name FROM task_ledger AS run WHERE lab_instance_id = ANY(%s)
 AND ({may_go_on("run")}
   OR (outcome = 'retried' AND finished_at + {_DELAY} > now() - make_interval(secs => %s)))
"""  # noqa: S608
# Read when a container was at some labs last. A dead letter that was published again counts as well: its
# message waits somewhere.
_LAST_RUN = """
SELECT lab_instance_id, max(at) FROM (
 SELECT lab_instance_id, coalesce(finished_at, claimed_at) AS at FROM task_ledger
 WHERE lab_instance_id = ANY(%(ids)s)
 UNION ALL SELECT lab_instance_id, acted_at FROM dead_letter_actions
 WHERE lab_instance_id = ANY(%(ids)s) AND action = 'requeued') AS seen GROUP BY lab_instance_id
"""
# Read until when the objects of some labs are kept.
_KEPT_UNTIL = """
SELECT lab_instance_id,
 max(finished_at + make_interval(secs => CAST(details ->> 'objects_kept_s' AS float)))
 FROM task_ledger WHERE lab_instance_id = ANY(%(ids)s) AND details ->> 'objects_kept_s' IS NOT NULL
 GROUP BY lab_instance_id
"""
# Count the runs that go on, by queue.
_UNDER_WAY = f"""
SELECT queue, count(*) FROM task_ledger AS run WHERE {may_go_on("run")} GROUP BY queue
"""  # noqa: S608
# Count the tasks that surely wait for their next attempt. Bounded by what an index has, and rather too few:
# beside unknown delays nobody's request is proven lost.
_KNOWN_DELAYS = f"""
SELECT count(DISTINCT task_id) FROM task_ledger WHERE outcome = 'retried'
 AND finished_at > now() - make_interval(secs => {LONGEST_DELAY_S})
 AND finished_at + {_LEAST_DELAY} > now() + make_interval(secs => {SURE_S})
"""  # noqa: S608
# Find the newest lab whose create came straight from its queue, from the newest lab down.
_NEWEST_BEGUN = f"""
SELECT created_at FROM lab_instances AS lab
 WHERE id > coalesce((SELECT max(id) FROM lab_instances), 0) - {NEWEST_LABS}
 AND EXISTS (SELECT FROM task_ledger WHERE lab_instance_id = lab.id AND task_name = '{CREATE_LAB_POD}'
             AND queue = '{QUEUE_NORMAL}' AND attempt = 1 AND NOT redelivered)
 ORDER BY id DESC LIMIT 1
"""  # noqa: S608
# Read the newest id that a lab ever had. Nobody may read a sequence by default, and a table need not have
# one.
_LAST_LAB = """
SELECT greatest(max(id), (
 SELECT CASE WHEN has_sequence_privilege(name, 'SELECT')
  THEN pg_sequence_last_value(CAST(name AS regclass)) END
 FROM pg_get_serial_sequence('lab_instances', 'id') AS name)) FROM lab_instances
"""
# Tell whether the server is a standby, or read-only.
_READ_ONLY = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::boolean"


@dataclass(frozen=True, slots=True)
class LabRow:
    """A row of lab_instances, as far as it says what has to be in the cluster and on the broker."""

    id: int
    lab_id: int
    student_id: int
    status: str
    k8s_pod_name: str | None
    created_at: datetime
    updated_at: datetime
    stop_requested_at: datetime | None
    #: Time at which it became STOPPED or FAILED; of a live lab the same as updated_at.
    ended_at: datetime
    #: The label of its objects, and of no other lab's; None: not known.
    object_label: str | None = None
    connection_url: str | None = None
    #: True: a time of the row was none, and counts as long ago.
    has_odd_times: bool = False

    @property
    def whose(self) -> LabIdentity:
        return LabIdentity(self.id, self.lab_id, self.student_id, self.object_label)

    @property
    def over(self) -> bool:
        """True once nothing starts the lab any more."""
        return self.status in ("STOPPED", "FAILED")

    @property
    def stopping(self) -> bool:
        """True from the request of its stop until it is STOPPED."""
        return not self.over and self.stop_requested_at is not None


def database_now(database: Database) -> datetime:
    ((moment,),) = database.fetch(_NOW)
    return moment  # type: ignore[no-any-return]  # a timestamptz


def live_rows(database: Database) -> Iterator[list[LabRow]]:
    """Yield the PENDING and RUNNING labs, by id, at most PAGE at a time, each page as it is then."""
    last = 0
    while rows := [_lab_row(*row) for row in database.fetch(_LIVE, (last, PAGE))]:
        yield rows
        last = rows[-1].id


def _lab_row(*values: Any) -> LabRow:
    """Return a row; what happened at no time that there is counts as long ago, and the row is named."""
    borne: list[Any] = [EARLIEST if isinstance(one, datetime) and is_odd(one) else one for one in values]
    row = LabRow(*borne)
    if EARLIEST not in borne:
        return row
    extra = {"action": "odd_row", "lab_instance_id": row.id}
    logger.warning("lab %d: a time in its row is before year 2 or after 9998", row.id, extra=extra)
    return replace(row, has_odd_times=True)


def some_rows(database: Database, ids: Collection[int]) -> Iterator[LabRow]:
    """Yield the labs with these ids, whatever their status; an id without a row yields nothing."""
    for part in _parts(ids):
        yield from (_lab_row(*row) for row in database.fetch(_SOME, (part,)))


def outbox_tasks(database: Database) -> set[tuple[int, str]]:
    """Return (lab, task name) of what waits to be published."""
    found: set[tuple[int, str]] = set()
    last = 0
    while rows := database.fetch(_OUTBOX, (last, PAGE)):
        found.update((lab, name) for _, lab, name in rows)
        last = rows[-1][0]
    return found


def going_on(database: Database, ids: Collection[int], *, grace_s: float) -> set[tuple[int, str]]:
    """Return (lab, task name) of what is under way for these labs, or is tried again, or was to be lately."""
    parts = (database.fetch(_RUNS, (part, grace_s)) for part in _parts(ids))
    return {(lab, name) for rows in parts for lab, name in rows}


def last_runs(database: Database, ids: Collection[int]) -> dict[int, datetime]:
    """Return lab -> when a container was at it last."""
    return _moments(database, _LAST_RUN, ids)


def kept_until(database: Database, ids: Collection[int]) -> dict[int, datetime]:
    """Return lab -> until when its objects stay though it FAILED (keep_failed_pods_s)."""
    return _moments(database, _KEPT_UNTIL, ids)


def under_way(database: Database) -> dict[str, int]:
    """Return queue -> runs that have begun and not ended."""
    return dict(database.fetch(_UNDER_WAY))


def last_lab(database: Database) -> int:
    """Return the newest id that a lab ever had, as far as the table and its sequence say; 0 without any."""
    return int(database.fetch(_LAST_LAB)[0][0] or 0)


def newest_begun(database: Database) -> datetime | None:
    """Return when the newest lab was asked for whose create was taken from the queue, or None."""
    found = database.fetch(_NEWEST_BEGUN)
    return found[0][0] if found else None


def why_read_only(database: Database) -> str | None:
    """Return why nothing can be written, or None: what a replica says may be old, too."""
    ((standby, read_only),) = database.fetch(_READ_ONLY)
    if standby:
        return "the database is a standby, whose rows may be old"
    return "the database is read-only" if read_only else None


def known_delays(database: Database) -> int:
    """Return how many tasks surely wait on the delay ladder: to be tried again, or to take objects down."""
    return int(database.fetch(_KNOWN_DELAYS)[0][0])


def _moments(database: Database, statement: str, ids: Collection[int]) -> dict[int, datetime]:
    return dict(row for part in _parts(ids) for row in database.fetch(statement, {"ids": part}))


def _parts(ids: Collection[int]) -> Iterator[list[int]]:
    ordered = sorted(ids)
    for at in range(0, len(ordered), PAGE):
        yield ordered[at : at + PAGE]
