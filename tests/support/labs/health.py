"""Health checks in this process: on a test's own servers and a scripted API server."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import yaml

from dispatcher.tasks import CREATE_LAB_POD, HEALTH_CHECK_PODS, HealthCheckPods
from jobs.checks.run import run_periodic
from jobs.config.stored import LIFE_SETTINGS
from jobs.database.ledger import Ending
from jobs.handlers.context import Connections, TaskContext
from tests.support.cluster.fake_cluster import FakeCluster
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_record
from tests.support.labs.verifying import age, path_of, pod_name, running
from tests.support.store import Bucket

Manifest = dict[str, Any]


def ago(seconds: float) -> str:
    """Return a time of the cluster's."""
    moment = datetime.now(timezone.utc) - timedelta(seconds=seconds)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def unready(seconds: float, *, containers: str = "False") -> list[Manifest]:
    """Return the conditions of a Pod that is not Ready for so long."""
    return [
        {"type": "Ready", "status": "False", "lastTransitionTime": ago(seconds)},
        {"type": "ContainersReady", "status": containers, "lastTransitionTime": ago(seconds)},
    ]


@dataclass
class Checking:
    """Health checks of the labs of one database and one scripted cluster."""

    connections: Connections
    database: Database
    cluster: FakeCluster
    bucket: Bucket
    settings: dict[str, object] = field(default_factory=dict)

    def set(self, **changes: object) -> None:
        """Change settings of labs that run."""
        self.settings |= changes
        self.bucket.put(LIFE_SETTINGS, yaml.safe_dump(self.settings).encode())

    def labs(self, count: int = 1) -> list[int]:
        """Return RUNNING labs an hour old, Ready, whose creates said what they were asked for."""
        labs = [running(self.database, self.cluster) for _ in range(count)]
        for lab in labs:
            record = make_record(lab, details={"request": create_kwargs(lab_instance_id=lab)})
            assert record.task_name == CREATE_LAB_POD
            self.connections.labs.record(record, Ending("succeeded"))
        age(self.database)
        return labs

    def lose(self, lab: int) -> None:
        """Let a lab's objects be gone, as after the deletion of its Pod."""
        for kind in ("Pod", "Service", "NetworkPolicy"):
            del self.cluster.objects[path_of(kind, pod_name(lab))]

    def pod(self, lab: int) -> Manifest:
        return self.cluster.objects[path_of("Pod", pod_name(lab))]

    def check(self, **payload: bool) -> dict[str, Any]:
        """Run one check; return its result."""
        record = make_record(task_name=HEALTH_CHECK_PODS)
        context = TaskContext(self.connections, record)
        context.labs.begin(record)
        run_periodic(context, HealthCheckPods(**payload))
        (row,) = self.database.rows("SELECT details FROM task_ledger WHERE task_id = %s", record.task_id)
        return dict(row["details"]["result"])

    def statuses(self, labs: list[int]) -> list[str]:
        return [self.database.lab(lab)["status"] for lab in labs]

    def told(self, lab: int | None = None) -> list[tuple[str, str, str]]:
        """Return event, cause and who is told of a lab, or of the platform."""
        rows = self.database.rows("SELECT * FROM notifications ORDER BY id")
        return [
            (row["event_type"], row["cause"], row["told"]) for row in rows if row["lab_instance_id"] == lab
        ]

    def run_of(self, lab: int) -> dict[str, Any]:
        """Return the ledger row of the check that failed a lab."""
        rows = self.database.ledger()
        (row,) = [r for r in rows if r["lab_instance_id"] == lab and r["task_name"] == HEALTH_CHECK_PODS]
        return row

    def outbox(self) -> list[dict[str, Any]]:
        return self.database.rows("SELECT * FROM task_outbox ORDER BY id")

    def patch(self, lab: int, status: Manifest) -> None:
        """Let a Pod have this status."""
        self.pod(lab)["status"] = json.loads(json.dumps(status))
