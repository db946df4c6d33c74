"""Write task results as Celery's key-value backends store them, so that its AsyncResult reads them.

Format: celery/backends/base.py (_get_result_meta, prepare_exception, BaseKeyValueStoreBackend), the
same from Celery 5.4 to 5.7. JSON only: a reader never has to unpickle.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

from dispatcher.task_status import TaskState

#: Seconds; Celery's default of result_expires.
DEFAULT_EXPIRES_S = 86_400


def key_of(task_id: str) -> str:
    """Return the key of a task's result, and the channel where its changes are told."""
    return f"celery-task-meta-{task_id}"


def make_meta(
    task_id: str, state: TaskState, result: Any, *, parent_id: str | None = None, group_id: str | None = None
) -> str:
    """Return the JSON to store; `result` is the task's, or an exception's of `make_failure`."""
    meta: dict[str, Any] = {
        "status": state.value,
        "result": result,
        "traceback": None,
        "children": [],
        "date_done": datetime.now(timezone.utc).isoformat() if state.ready else None,
    }
    # Celery leaves them out when the task has none.
    if group_id:
        meta["group_id"] = group_id
    if parent_id:
        meta["parent_id"] = parent_id
    return json.dumps({**meta, "task_id": task_id})


def make_started(hostname: str | None, pid: int) -> dict[str, Any]:
    return {"pid": pid, "hostname": hostname}


def make_failure(category: str, message: str) -> dict[str, Any]:
    """Return the exception of a FAILURE or RETRY.

    A reader that has imported dispatcher gets dispatcher.TaskFailed; any other an exception that Celery
    makes up, called TaskFailed, with category and sentence as its arguments.
    """
    return {"exc_type": "TaskFailed", "exc_message": [category, message], "exc_module": "dispatcher.errors"}


def make_revoked(message: str) -> dict[str, Any]:
    """Return the exception of a REVOKED task, Celery's own."""
    return {"exc_type": "TaskRevokedError", "exc_message": [message], "exc_module": "celery.exceptions"}
