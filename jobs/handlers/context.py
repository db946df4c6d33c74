"""Open what a task works with when it is first used, or ahead of time in a spare."""

from __future__ import annotations

from functools import cached_property

from dispatcher.broker.publisher import Publisher
from jobs.cluster.access import kubeconfig_access, service_account_access
from jobs.cluster.client import Cluster
from jobs.cluster.lab_objects import LabObjects
from jobs.config.environment import JobSettings
from jobs.config.objectstore import ObjectStore
from jobs.config.stored import Configs
from jobs.database.lab_rows import LabState
from jobs.database.lab_store import LabStore
from jobs.database.ledger import TaskRunRecord
from jobs.failures import Failure
from jobs.notify.redis_results import ResultWriter


class Connections:
    """The container's connections; every property may be used from one thread at a time."""

    def __init__(self, settings: JobSettings) -> None:
        self.settings = settings
        #: Ids of notifications to deliver once the message is acknowledged.
        self.notifications: list[int] = []

    @cached_property
    def labs(self) -> LabStore:
        name = f"autolabs-job {self.settings.pod_name or ''}".strip()
        return LabStore(self.settings.database_url, application_name=name)

    @cached_property
    def store(self) -> ObjectStore:
        return ObjectStore(self.settings.store)

    @cached_property
    def cluster(self) -> Cluster:
        key = self.settings.kubeconfig_object
        access = kubeconfig_access(self.store.read(key).content) if key else service_account_access()
        return Cluster(access)

    @cached_property
    def lab_objects(self) -> LabObjects:
        return LabObjects(self.cluster, self.settings.namespace)

    @cached_property
    def publisher(self) -> Publisher:
        """A second connection to the broker, for what a task publishes."""
        return Publisher(self.settings.broker, name=f"autolabs-job-publish {self.settings.pod_name or ''}")

    @cached_property
    def results(self) -> ResultWriter | None:
        """Where results go for a backend's Celery app; None when nowhere."""
        return ResultWriter(self.settings.results) if self.settings.results else None

    def warm(self) -> None:
        """Open everything a create needs. What fails here is left to the task, which reports it."""
        if self.results:
            self.results.warm()
        self.labs.warm()
        self.store.warm()
        self.cluster.warm()


class TaskContext:
    """One task under way: its connections, its record, its configuration."""

    def __init__(self, connections: Connections, record: TaskRunRecord) -> None:
        self.settings = connections.settings
        self.labs = connections.labs
        self.publisher = connections.publisher
        self.record = record
        self.configs = Configs(connections.store)
        record.details["configs"] = self.configs.versions
        self._connections = connections
        #: The object label of the lab that was looked up last.
        self.object_label: str | None = None

    @property
    def cluster(self) -> Cluster:
        """The Kubernetes API; a task that never asks opens no connection to it."""
        return self._connections.cluster

    @property
    def lab_objects(self) -> LabObjects:
        return self._connections.lab_objects

    def find_lab(self, lab_instance_id: int) -> LabState | None:
        """Return the lab as this task finds it, or None when there is no such row. Raises JobError."""
        lab = self.labs.find(lab_instance_id, task_id=self.record.task_id)
        self.object_label = lab.object_label if lab else None
        return lab

    def need_lab(self, lab_instance_id: int) -> LabState:
        """Return the lab as this task finds it. Raises JobError, also when there is no such row."""
        lab = self.find_lab(lab_instance_id)
        if lab is None:
            evidence = "the message may be ahead of the backend's commit"
            raise Failure.LAB_UNKNOWN.error(lab_instance_id=lab_instance_id, evidence=evidence)
        return lab

    def notify(self, notification_id: int | None) -> None:
        """Have a notification, if there is one, delivered once the message is acknowledged."""
        if notification_id is not None:
            self._connections.notifications.append(notification_id)
