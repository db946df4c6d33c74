"""The platform from outside: a backend's database and dispatcher, and an operator's view of the cluster.

Everything is reached as `make env` says; the demo, the end-to-end tests and the benchmark share this.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, TypeVar

import psycopg2
import psycopg2.extras
from kubernetes import client, config

from dispatcher import Dispatcher

T = TypeVar("T")

PLATFORM = "platform"
LABS = "labs"
_NEEDED = ("KUBECONFIG", "AMQP_URL", "DATABASE_URL", "LAB_IMAGE")


class NotInTime(Exception):
    """Raised when something awaited did not happen; says what was seen last."""


def eventually(
    look: Callable[[], T | None], *, timeout_s: float, what: str, last: Callable[[], object] = lambda: None
) -> T:
    """Look ten times a second until the answer is not None or False, and return it."""
    deadline = time.monotonic() + timeout_s
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise NotInTime(f"{what}: not within {timeout_s:g} s; last seen: {last()}")
        time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class LabRow:
    """A row of lab_instances."""

    id: int
    status: str
    k8s_pod_name: str | None
    connection_url: str | None
    celery_task_id: str | None
    error_category: str | None
    error_message: str | None
    created_at: datetime
    started_at: datetime | None
    failed_at: datetime | None
    stopped_at: datetime | None


_LAB_COLUMNS = ", ".join(LabRow.__slots__)


class Platform:
    """One platform, as reached by the variables of `make env`."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        missing = [name for name in _NEEDED if not environ.get(name)]
        if missing:
            raise SystemExit(f'not set: {", ".join(missing)}; run: eval "$(make -s env)"')
        self.lab_image = environ["LAB_IMAGE"]
        self._environ = environ
        #: Labs that were asked for.
        self.labs: list[int] = []

    def close(self) -> None:
        """Close what was opened."""
        for name in ("dispatcher", "_database", "_api_client"):
            if opened := self.__dict__.pop(name, None):  # cached_property keeps it there
                opened.close()

    @cached_property
    def dispatcher(self) -> Dispatcher:
        """The library that a backend uses."""
        return Dispatcher(self._environ["AMQP_URL"])

    @cached_property
    def _database(self) -> Any:
        connection = psycopg2.connect(self._environ["DATABASE_URL"])
        connection.autocommit = True
        return connection

    @cached_property
    def _api_client(self) -> Any:
        return config.new_client_from_config(self._environ["KUBECONFIG"])

    @cached_property
    def core(self) -> client.CoreV1Api:
        """Pods, Services, Events."""
        return client.CoreV1Api(self._api_client)

    @cached_property
    def batch(self) -> client.BatchV1Api:
        """Jobs and CronJobs."""
        return client.BatchV1Api(self._api_client)

    @cached_property
    def networking(self) -> client.NetworkingV1Api:
        """NetworkPolicies."""
        return client.NetworkingV1Api(self._api_client)

    def query(self, sql: str, *values: object) -> list[dict[str, Any]]:
        """Run SQL as a backend or an operator would, and return its rows."""
        try:
            return self._query(sql, values)
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            # A server that restarted ended the connection while nobody used it.
            if not self.__dict__.pop("_database").closed:
                raise
            return self._query(sql, values)

    def _query(self, sql: str, values: tuple[object, ...]) -> list[dict[str, Any]]:
        with self._database.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
            cursor.execute(sql, values)
            return [dict(row) for row in cursor.fetchall()] if cursor.description else []

    def add_lab(self, *, lab_id: int = 456, student_id: int = 789) -> int:
        """Insert a PENDING row with the columns that a backend must give, and return its id."""
        rows = self.query(
            "INSERT INTO lab_instances (lab_id, student_id) VALUES (%s, %s) RETURNING id", lab_id, student_id
        )
        self.labs.append(int(rows[0]["id"]))
        return self.labs[-1]

    def start_lab(self, *, image: str | None = None, **payload: Any) -> tuple[int, str]:
        """Insert a row, publish its create, store the task id; return both ids."""
        lab_instance_id = self.add_lab()
        task_id = self.dispatcher.create_lab(
            lab_instance_id=lab_instance_id,
            lab_id=456,
            student_id=789,
            docker_image=image or self.lab_image,
            **payload,
        )
        self.query("UPDATE lab_instances SET celery_task_id = %s WHERE id = %s", task_id, lab_instance_id)
        return lab_instance_id, task_id

    def lab(self, lab_instance_id: int) -> LabRow:
        """Return a row; the columns named in LabRow."""
        rows = self.query(
            f"SELECT {_LAB_COLUMNS} FROM lab_instances WHERE id = %s",  # noqa: S608  # own names
            lab_instance_id,
        )
        return LabRow(**rows[0])

    def wait_for_status(self, lab_instance_id: int, *statuses: str, timeout_s: float = 90) -> LabRow:
        """Return the row as soon as it has one of the statuses."""

        def look() -> LabRow | None:
            row = self.lab(lab_instance_id)
            return row if row.status in statuses else None

        return eventually(
            look,
            timeout_s=timeout_s,
            what=f"lab {lab_instance_id} {' or '.join(statuses)}",
            last=lambda: (self.lab(lab_instance_id), self.runs(lab_instance_id)),
        )

    def runs(self, lab_instance_id: int) -> list[dict[str, Any]]:
        """Return the ledger rows of a lab, oldest first."""
        return self.query("SELECT * FROM task_ledger WHERE lab_instance_id = %s ORDER BY id", lab_instance_id)

    def objects_of(self, lab_instance_id: int) -> list[str]:
        """Return what exists in the cluster for a lab, as kind/name."""
        selector = f"lab_instance_id={lab_instance_id}"
        lists = {
            "Pod": self.core.list_namespaced_pod(LABS, label_selector=selector),
            "Service": self.core.list_namespaced_service(LABS, label_selector=selector),
            "NetworkPolicy": self.networking.list_namespaced_network_policy(LABS, label_selector=selector),
        }
        return [f"{kind}/{item.metadata.name}" for kind, found in lists.items() for item in found.items]

    def job_log(self, job_name: str) -> str:
        """Return what `kubectl logs job/NAME` prints."""
        pods = self.core.list_namespaced_pod(
            PLATFORM, label_selector=f"batch.kubernetes.io/job-name={job_name}"
        )
        # The client returns a bytes literal as text unless the body is left alone.
        logs = [
            self.core.read_namespaced_pod_log(
                pod.metadata.name, PLATFORM, _preload_content=False
            ).data.decode()
            for pod in pods.items
        ]
        return "".join(logs)
