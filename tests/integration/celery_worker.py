"""A real Celery worker's app, run by test_real_celery.py in a process of its own.

It consumes one queue of the topology and appends what its task was called with to RECORD.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import Queue

from dispatcher import tasks, topology

app = Celery("worker", broker=os.environ["AMQP_URL"])
app.conf.update(
    task_queues=[Queue(topology.QUEUE_NORMAL, no_declare=True)],
    task_default_queue=topology.QUEUE_NORMAL,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


@app.task(name=tasks.CREATE_LAB_POD, bind=True)  # type: ignore[untyped-decorator]
def create_lab_pod(self: Any, **kwargs: Any) -> None:
    line = {"id": self.request.id, "retries": self.request.retries, "kwargs": kwargs}
    with Path(os.environ["RECORD"]).open("a") as record:
        record.write(json.dumps(line) + "\n")
