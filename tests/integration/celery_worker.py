"""A real Celery worker's app, run by tests/support/broker/celery_versions.py in a process of its own.

It consumes QUEUE and appends to RECORD what its task was called with.
"""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import Queue

from dispatcher import tasks

QUEUE = os.environ["QUEUE"]
#: What a task can know of its message.
SEEN = (
    "id",
    "retries",
    "eta",
    "expires",
    "root_id",
    "parent_id",
    "group",
    "group_index",
    "shadow",
    "origin",
    "timelimit",
    "ignore_result",
    "correlation_id",
    "reply_to",
    "replaced_task_nesting",
    "stamps",
)

app = Celery("worker", broker=os.environ["AMQP_URL"])
app.conf.update(
    task_queues=[Queue(QUEUE, no_declare=True)],
    task_default_queue=QUEUE,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


@app.task(name=tasks.CREATE_LAB_POD, bind=True)  # type: ignore[untyped-decorator]
def create_lab_pod(self: Any, *args: Any, **kwargs: Any) -> None:
    line = {name: getattr(self.request, name, None) for name in SEEN}
    line["priority"] = self.request.delivery_info["priority"]
    line |= {"args": args, "kwargs": kwargs, "began": datetime.now(timezone.utc).isoformat()}
    with Path(os.environ["RECORD"]).open("a") as record:
        record.write(json.dumps(line) + "\n")
