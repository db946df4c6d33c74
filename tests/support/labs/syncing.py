"""celery_workers.sync_lab_status in this process, and what a test reads of a platform after it."""

from __future__ import annotations

from typing import Any

from dispatcher.broker import topology
from dispatcher.tasks import SYNC_LAB_STATUS, SyncLabStatus
from jobs.checks import sync
from jobs.database.ledger import Ending
from jobs.handlers.context import Connections, TaskContext
from tests.support.broker.rabbitmq import Broker
from tests.support.database.postgres import Database
from tests.support.factories import make_record


class Sync:
    """One run, as a message or a CronJob has it."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections

    def __call__(self, **options: bool) -> dict[str, Any]:
        names: dict[str, Any] = {"task_name": SYNC_LAB_STATUS, "queue": topology.QUEUE_LOW}
        context = TaskContext(self.connections, make_record(**names))
        context.labs.begin(context.record)
        result = sync.run(context, SyncLabStatus(**options))
        context.labs.record(context.record, Ending("succeeded", result=result))
        return result


def waiting(broker: Broker) -> dict[str, int]:
    """Return queue -> messages in it, of those that have any."""
    return {queue: broker.depth(queue) for queue in topology.BINDINGS if broker.depth(queue)}


def status(database: Database, lab: int) -> str:
    return str(database.lab(lab)["status"])
