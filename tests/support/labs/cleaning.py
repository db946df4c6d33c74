"""Labs that are to end, and cleanups of them in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from dispatcher.broker import topology
from dispatcher.tasks import CLEANUP_TIMEOUT_LABS, CREATE_LAB_POD, CleanupTimeoutLabs
from jobs.checks import cleanup
from jobs.config.lifetimes import LifeSettings
from jobs.container.settle import publish_delayed
from jobs.database.due_rows import announce_ends
from jobs.database.ledger import Ending
from jobs.handlers.context import Connections, TaskContext
from tests.support.broker.queues import take_all
from tests.support.broker.rabbitmq import Broker, Message
from tests.support.database.postgres import Database
from tests.support.factories import make_record, make_task
from tests.support.store import Bucket

#: Kept away from the brake, which has tests of its own.
LAX = {"cleanup_always": 1000}


@dataclass
class Cleaning:
    """One platform with labs to end."""

    connections: Connections
    database: Database
    broker: Broker
    bucket: Bucket

    def another(self, **settings: Any) -> Cleaning:
        """Return one with connections of its own, for another thread or with other settings."""
        connections = Connections(replace(self.connections.settings, **settings))
        return Cleaning(connections, self.database, self.broker, self.bucket)

    def close(self) -> None:
        self.connections.labs.close()
        self.connections.publisher.close()

    def set(self, **settings: Any) -> None:
        self.bucket.put("settings/lab-life.yaml", json.dumps({**LAX, **settings}).encode())

    def run(self, *, dry_run: bool = False, force: bool = False) -> dict[str, Any]:
        record = make_record(task_name=CLEANUP_TIMEOUT_LABS)
        context = TaskContext(self.connections, record)
        return cleanup.run(context, CleanupTimeoutLabs(dry_run=dry_run, force=force))

    def add_expired(self, count: int = 1, **columns: Any) -> list[int]:
        given = {"lab_id": 7, "student_id": 42, "status": "RUNNING", "k8s_pod_name": "pod", **columns}
        marks = ", ".join(["%s"] * len(given))
        rows = self.database.rows(
            f"INSERT INTO lab_instances ({', '.join(given)})"
            f" SELECT {marks} FROM generate_series(1, %s) RETURNING id",
            *given.values(),
            count,
        )
        labs = sorted(int(row["id"]) for row in rows)
        past = "UPDATE lab_instances SET expires_at = now() - interval '1 minute' WHERE id = ANY(%s)"
        self.database.rows(past, labs)
        return labs

    def change(self, lab: int, **columns: str) -> None:
        """Set columns to SQL expressions."""
        what = ", ".join(f"{name} = {expression}" for name, expression in columns.items())
        self.database.rows(f"UPDATE lab_instances SET {what} WHERE id = %s", lab)

    def add_pending(self, minutes: int = 61, *, met: bool = True) -> int:
        """Add a lab that waits for so long; `met`: a container has tried to start it."""
        lab = self.database.add_lab()
        self.change(lab, created_at=f"now() - interval '{minutes} minutes'")
        if met:
            self.connections.labs.record(make_record(lab, task_name=CREATE_LAB_POD), Ending("retried"))
            # Its next attempt is not to be on the ladder any more.
            moved = "UPDATE task_ledger SET finished_at = finished_at - interval '1 hour'"
            self.database.rows(f"{moved} WHERE lab_instance_id = %s", lab)
        return lab

    def add_delayed_retry(self) -> None:
        """Let a task wait on the ladder that the ledger knows of."""
        lab = self.database.add_lab()
        record = make_record(lab, details={"retry_delay_s": 600.0})
        self.connections.labs.record(record, Ending("retried"))
        publish_delayed(self.connections.publisher, make_task(id=record.task_id), 600)

    def warn(self, lab: int, *, minutes_ago: int) -> None:
        """Have a student warned, so long ago, of an end that has just come."""
        self.change(lab, expires_at="now() + interval '4 minutes'")
        assert announce_ends(self.connections.labs, LifeSettings(warn_minutes=[5])) == 1
        self.change(lab, expires_at="expires_at - interval '5 minutes'")
        statement = (
            "UPDATE notifications SET created_at = now() - make_interval(mins => %s), published_at = now(),"
            " occasion = occasion - interval '5 minutes' WHERE lab_instance_id = %s"
        )
        self.database.rows(statement, minutes_ago, lab)

    def deletes(self) -> list[Message]:
        return take_all(self.broker, topology.QUEUE_HIGH)

    def deleted(self) -> list[int]:
        return [lab_of(message) for message in self.deletes()]

    def outbox(self) -> list[dict[str, Any]]:
        return self.database.rows("SELECT * FROM task_outbox ORDER BY id")


def lab_of(message: Message) -> int:
    return int(json.loads(message.body)[1]["lab_instance_id"])
