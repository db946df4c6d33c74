"""A lab that is not what its row says becomes FAILED, with its reason; then what is left of it is deleted.

The row first: an object that is not deleted is an orphan, which the next sync finds, while a lab whose
objects are gone and whose row still says RUNNING would tell its student nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from jobs.database.ledger import TaskRunRecord
from jobs.errors import JobError
from jobs.lab_objects import LabObjects
from jobs.labs import LabStore
from jobs.naming import Whose

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lost:
    """What became of the objects of labs that were made FAILED."""

    #: Objects whose deletion has begun.
    deleted: int
    #: Why there may be others, or None.
    left: str | None = None


def fail_lost_lab(
    labs: LabStore,
    objects: LabObjects,
    record: TaskRunRecord,
    error: JobError,
    *,
    whose: Whose,
    status: str,
    pod_name: str | None,
    as_of: datetime,
    max_restarts: int = 0,
) -> Lost | None:
    """Make the lab of a record FAILED and delete its objects; None: something happened to it since `as_of`.

    `whose`, `status` and `pod_name` are those of the row as it was read then. Another lab is started in its
    place if fewer than `max_restarts` were in a row: its create is in the outbox. Raises JobError when the
    database does not take it.
    """
    if not labs.mark_lost(
        record, error, status=status, pod_name=pod_name, as_of=as_of, max_restarts=max_restarts
    ):
        return None
    return delete_lost(objects, [whose])


def delete_lost(objects: LabObjects, labs: Collection[Whose]) -> Lost:
    """Delete the objects of labs that were made FAILED; what is left of them the next sync deletes."""
    try:
        return Lost(objects.delete_labs(labs))
    except JobError as exc:
        told = exc.evidence or str(exc)
        extra = {"action": "objects_left", "labs": [whose.lab_instance_id for whose in labs]}
        logger.warning("objects of FAILED labs are left: %s", told, extra=extra)
        return Lost(0, told)
