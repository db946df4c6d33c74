"""When a lab is stopped without anybody asking for it, and what the task that does it is called."""

from __future__ import annotations

import uuid
from datetime import datetime

#: Between two cleanups, as settings/schedules.yaml is shipped.
CLEANUP_EVERY_MINUTES = 5
#: A stop that did nothing for so long is asked for again: its task ended in the dead-letter queue.
STOP_PATIENCE_MINUTES = 15

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "cleanup.autolabs")


def cleanup_task_id(lab_instance_id: int, stop_requested_at: datetime | None) -> str:
    """Return the task id of a lab's cleanup, the same for two cleanups that mean the same stop.

    `stop_requested_at` is that of the stop which is repeated, None for a lab that is past its time.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{lab_instance_id} {stop_requested_at}"))


def overdue_task_id(lab_instance_id: int) -> str:
    """Return the id of the task that takes away what is left of a lab which never became usable.

    The lab is FAILED, with the reason in its row, and stays so.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{lab_instance_id} overdue"))
