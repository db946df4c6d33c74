"""What the database says: live labs page by page, and what is known of the tasks of some of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime

from dispatcher.failure_contract import COME_BACK_S
from dispatcher.tasks import CREATE_LAB_POD
from dispatcher.topology import QUEUE_NORMAL
from jobs.database.connection import Cursor
from jobs.database.lab_store import LabStore
from jobs.database.ledger import may_go_on
from jobs.verify.inventory import LabRow

#: Rows per statement.
PAGE = 1000
#: Seconds of the longest delay between attempts.
LONGEST_DELAY_S = 3600
#: Labs among which the newest that was begun is looked for.
NEWEST_LABS = 20_000
#: Seconds for which a task surely still waits on the ladder, after the database may have been slow.
SURE_S = 10

_ROW = (
    "id, lab_id, student_id, status, k8s_pod_name, created_at, updated_at, stop_requested_at,"
    " CASE status WHEN 'STOPPED' THEN coalesce(stopped_at, updated_at)"
    " WHEN 'FAILED' THEN coalesce(failed_at, updated_at) ELSE updated_at END"
)
_LIVE = (
    f"SELECT {_ROW} FROM lab_instances"  # noqa: S608  # constants of this module
    " WHERE id > %s AND status IN ('PENDING', 'RUNNING') ORDER BY id LIMIT %s"
)
_SOME = f"SELECT {_ROW} FROM lab_instances WHERE id = ANY(%s)"  # noqa: S608
_OUTBOX = (
    "SELECT id, lab_instance_id, task_name FROM task_outbox WHERE id > %s AND lab_instance_id IS NOT NULL"
    " ORDER BY id LIMIT %s"
)


def _delay(come_back_s: float) -> str:
    return f"make_interval(secs => coalesce(CAST(details ->> 'retry_delay_s' AS float), {come_back_s}))"


#: One that comes back without a delay of its own waits between half and all of COME_BACK_S.
_LEAST_DELAY, _DELAY = _delay(COME_BACK_S / 2), _delay(COME_BACK_S)
_RUNS = f"""
SELECT lab_instance_id, task_name FROM task_ledger AS run WHERE lab_instance_id = ANY(%s)
 AND ({may_go_on("run")}
   OR (outcome = 'retried' AND finished_at + {_DELAY} > now() - make_interval(secs => %s)))
"""  # noqa: S608
# A dead letter that was published again counts as well: its message waits somewhere.
_LAST_RUN = (
    "SELECT lab_instance_id, max(at) FROM ("
    " SELECT lab_instance_id, coalesce(finished_at, claimed_at) AS at FROM task_ledger"
    " WHERE lab_instance_id = ANY(%(ids)s)"
    " UNION ALL SELECT lab_instance_id, acted_at FROM dead_letter_actions"
    " WHERE lab_instance_id = ANY(%(ids)s) AND action = 'requeued') AS seen GROUP BY lab_instance_id"
)
_KEPT_UNTIL = (
    "SELECT lab_instance_id,"
    " max(finished_at + make_interval(secs => CAST(details ->> 'objects_kept_s' AS float)))"
    " FROM task_ledger WHERE lab_instance_id = ANY(%(ids)s) AND details ->> 'objects_kept_s' IS NOT NULL"
    " GROUP BY lab_instance_id"
)
_UNDER_WAY = f"""
SELECT queue, count(*) FROM task_ledger AS run WHERE {may_go_on("run")} GROUP BY queue
"""  # noqa: S608
# Bounded by what an index has, and rather too few: beside unknown delays nobody's request is proven lost.
_KNOWN_DELAYS = f"""
SELECT count(DISTINCT task_id) FROM task_ledger WHERE outcome = 'retried'
 AND finished_at > now() - make_interval(secs => {LONGEST_DELAY_S})
 AND finished_at + {_LEAST_DELAY} > now() + make_interval(secs => {SURE_S})
"""  # noqa: S608
# From the newest lab down, until one is found whose create came straight from its queue.
_NEWEST_BEGUN = f"""
SELECT created_at FROM lab_instances AS lab
 WHERE id > coalesce((SELECT max(id) FROM lab_instances), 0) - {NEWEST_LABS}
 AND EXISTS (SELECT FROM task_ledger WHERE lab_instance_id = lab.id AND task_name = '{CREATE_LAB_POD}'
             AND queue = '{QUEUE_NORMAL}' AND attempt = 1 AND NOT redelivered)
 ORDER BY id DESC LIMIT 1
"""  # noqa: S608
# Nobody may read a sequence by default, and a table need not have one.
_LAST_LAB = """
SELECT greatest(max(id), (
 SELECT CASE WHEN has_sequence_privilege(name, 'SELECT')
  THEN pg_sequence_last_value(CAST(name AS regclass)) END
 FROM pg_get_serial_sequence('lab_instances', 'id') AS name)) FROM lab_instances
"""
_READ_ONLY = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::boolean"


def database_now(labs: LabStore) -> datetime:
    """Return the clock by which all ages are taken."""

    def ask(cursor: Cursor) -> datetime:
        cursor.execute("SELECT now()")
        moment: datetime = cursor.fetchall()[0][0]
        return moment

    return labs.transaction(ask)


def live_rows(labs: LabStore) -> Iterator[list[LabRow]]:
    """Yield the PENDING and RUNNING labs, by id, at most PAGE at a time, each page as it is then."""
    last = 0

    def page(cursor: Cursor) -> list[LabRow]:
        cursor.execute(_LIVE, (last, PAGE))
        return [LabRow(*row) for row in cursor.fetchall()]

    while rows := labs.transaction(page):
        yield rows
        last = rows[-1].id


def some_rows(labs: LabStore, ids: Collection[int]) -> Iterator[LabRow]:
    """Yield the labs with these ids, whatever their status; an id without a row yields nothing."""
    for part in _parts(ids):

        def page(cursor: Cursor, part: list[int] = part) -> list[LabRow]:
            cursor.execute(_SOME, (part,))
            return [LabRow(*row) for row in cursor.fetchall()]

        yield from labs.transaction(page)


def outbox_tasks(labs: LabStore) -> set[tuple[int, str]]:
    """Return (lab, task name) of what waits to be published."""
    found: set[tuple[int, str]] = set()
    last = 0

    def page(cursor: Cursor) -> list[tuple[int, int, str]]:
        cursor.execute(_OUTBOX, (last, PAGE))
        return [(row[0], row[1], row[2]) for row in cursor.fetchall()]

    while rows := labs.transaction(page):
        found.update((lab, name) for _, lab, name in rows)
        last = rows[-1][0]
    return found


def going_on(labs: LabStore, ids: Collection[int], *, grace_s: float) -> set[tuple[int, str]]:
    """Return (lab, task name) of what is under way for these labs, or is tried again, or was to be lately."""
    found: set[tuple[int, str]] = set()
    for part in _parts(ids):

        def page(cursor: Cursor, part: list[int] = part) -> list[tuple[int, str]]:
            cursor.execute(_RUNS, (part, grace_s))
            return [(row[0], row[1]) for row in cursor.fetchall()]

        found.update(labs.transaction(page))
    return found


def last_runs(labs: LabStore, ids: Collection[int]) -> dict[int, datetime]:
    """Return lab -> when a container was at it last."""
    return _moments(labs, _LAST_RUN, ids)


def kept_until(labs: LabStore, ids: Collection[int]) -> dict[int, datetime]:
    """Return lab -> until when its objects stay though it FAILED (keep_failed_pods_s)."""
    return _moments(labs, _KEPT_UNTIL, ids)


def _moments(labs: LabStore, statement: str, ids: Collection[int]) -> dict[int, datetime]:
    found: dict[int, datetime] = {}
    for part in _parts(ids):

        def page(cursor: Cursor, part: list[int] = part) -> dict[int, datetime]:
            cursor.execute(statement, {"ids": part})
            return dict(cursor.fetchall())

        found |= labs.transaction(page)
    return found


def under_way(labs: LabStore) -> dict[str, int]:
    """Return queue -> runs that have begun and not ended."""

    def ask(cursor: Cursor) -> dict[str, int]:
        cursor.execute(_UNDER_WAY)
        return dict(cursor.fetchall())

    return labs.transaction(ask)


def last_lab(labs: LabStore) -> int:
    """Return the newest id that a lab ever had, as far as the table and its sequence say; 0 without any."""

    def ask(cursor: Cursor) -> int:
        cursor.execute(_LAST_LAB)
        return int(cursor.fetchall()[0][0] or 0)

    return labs.transaction(ask)


def newest_begun(labs: LabStore) -> datetime | None:
    """Return when the newest lab was asked for whose create was taken from the queue, or None."""

    def ask(cursor: Cursor) -> datetime | None:
        cursor.execute(_NEWEST_BEGUN)
        found = cursor.fetchone()
        return found[0] if found else None

    return labs.transaction(ask)


def why_read_only(labs: LabStore) -> str | None:
    """Return why nothing can be written, or None: what a replica says may be old, too."""

    def ask(cursor: Cursor) -> str | None:
        cursor.execute(_READ_ONLY)
        ((standby, read_only),) = cursor.fetchall()
        if standby:
            return "the database is a standby, whose rows may be old"
        return "the database is read-only" if read_only else None

    return labs.transaction(ask)


def known_delays(labs: LabStore) -> int:
    """Return how many tasks surely wait on the delay ladder: to be tried again, or to take objects down."""

    def ask(cursor: Cursor) -> int:
        cursor.execute(_KNOWN_DELAYS)
        return int(cursor.fetchall()[0][0])

    return labs.transaction(ask)


def _parts(ids: Collection[int]) -> Iterator[list[int]]:
    ordered = sorted(ids)
    for at in range(0, len(ordered), PAGE):
        yield ordered[at : at + PAGE]
