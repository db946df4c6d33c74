"""Read a row of `lab_instances` for a handler, and hold what the statements that change rows share.

Every change is a compare-and-set: the statement says in its condition where the lab has to be, and whoever
executes it looks at the count of rows. Times are the database's; the tables are those of dispatcher.models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jobs.database.connection import Cursor
from jobs.database.ledger import CANCELLED
from jobs.database.object_label import OBJECT_LABEL
from jobs.errors import JobError

# Tell whether a lab waits for its start (a condition).
WAITS = "status = 'PENDING' AND stop_requested_at IS NULL"
# Tell whether no other run than this one has taken the lab over (a condition).
OWNED_BY_RUN = "(starting_run IS NULL OR starting_run = %(run_id)s)"
# Tell whether this create owns the lab (a condition). A later run of the same task takes the place of an
# earlier one, even if the database missed its beginning.
OWNED = f"""
({OWNED_BY_RUN}
 OR EXISTS (SELECT FROM task_ledger AS owner WHERE run_id = starting_run AND task_id = %(task_id)s
            AND NOT EXISTS (SELECT FROM task_ledger WHERE run_id = %(run_id)s AND id < owner.id)))
"""  # noqa: S608  # a constant of this module
# Make labs FAILED, those of the condition that follows.
MAKE_FAILED = """
UPDATE lab_instances SET status = 'FAILED', error_category = %(category)s, error_message = %(sentence)s,
 celery_task_id = coalesce(celery_task_id, %(task_id)s), connection_url = NULL, failed_at = now(),
 updated_at = now()
WHERE """
# Set the tombstone of labs, those of the condition that follows: no later create passes it.
SET_TOMBSTONE = "UPDATE lab_instances SET stop_requested_at = now(), updated_at = now() WHERE "
# The columns of LabState; the task is the one that is at the lab, or NULL.
STATE = (
    "status, stop_requested_at IS NOT NULL, k8s_pod_name, connection_url, starting_run::text, lab_id,"
    f" {CANCELLED}, student_id, {OBJECT_LABEL}"
)
# Read a lab.
_READ = f"SELECT {STATE} FROM lab_instances WHERE id = %(lab)s"  # noqa: S608


@dataclass(frozen=True, slots=True)
class LabState:
    """The part of a lab's row that decides what a handler does, and whether its task was cancelled."""

    status: str
    stop_requested: bool
    k8s_pod_name: str | None
    connection_url: str | None
    #: The run that replaced the objects of another create.
    starting_run: str | None
    lab_id: int
    #: True: the task that is at the lab is not to be performed any more.
    cancelled: bool
    student_id: int
    #: The label of its objects, and of no other lab's; None: not known.
    object_label: str | None = None

    @property
    def should_start(self) -> bool:
        return self.status == "PENDING" and not self.stop_requested

    @property
    def runs(self) -> bool:
        return self.status == "RUNNING" and not self.stop_requested

    @property
    def objects_to_keep(self) -> str | None:
        """The name of the objects that are to stay, whoever finds nothing to start any more."""
        taken_over = self.should_start and self.starting_run is not None
        return self.k8s_pod_name if taken_over or self.status == "RUNNING" else None


def read_lab(cursor: Cursor, lab_instance_id: int, task_id: str | None = None) -> LabState | None:
    cursor.execute(_READ, {"lab": lab_instance_id, "task_id": task_id})
    row: tuple[Any, ...] | None = cursor.fetchone()
    return LabState(*row) if row else None


def failed_because(error: JobError, *, task_id: str | None = None) -> dict[str, str | None]:
    """Return the values of MAKE_FAILED; the task becomes that of labs which have none."""
    return {"category": error.category.value, "sentence": error.sentence, "task_id": task_id}
