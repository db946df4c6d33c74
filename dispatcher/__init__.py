"""Publish AutoLabs tasks from a backend: Celery-compatible messages, confirmed by the broker."""

from __future__ import annotations

from dispatcher.celery_config import celery_config
from dispatcher.client import Dispatcher, SendResult
from dispatcher.errors import (
    DispatcherError,
    EndHasMoved,
    ExtensionTooLong,
    ExtensionTooShort,
    InvalidSettings,
    InvalidTask,
    LabIsOver,
    LabUnknown,
    MalformedMessage,
    MissingExtra,
    NotConfirmed,
    NotExtended,
    NotSent,
    PublishError,
    TaskFailed,
    TaskRevoked,
    TaskTimeout,
    TooManyLabs,
    Unencodable,
    Unroutable,
)
from dispatcher.handle import TaskHandle
from dispatcher.lab_time import LabTime
from dispatcher.message.request import TaskRequest
from dispatcher.settings import BrokerSettings
from dispatcher.task_status import TaskState, TaskStatus
from dispatcher.tasks import (
    CLEANUP_TIMEOUT_LABS,
    CREATE_LAB_POD,
    DELETE_LAB_POD,
    HEALTH_CHECK_PODS,
    SCALE_LAB_RESOURCES,
    SYNC_LAB_STATUS,
    CleanupTimeoutLabs,
    CreateLabPod,
    DeleteLabPod,
    HealthCheckPods,
    ScaleLabResources,
    SyncLabStatus,
)

__all__ = [
    # Publishing
    "BrokerSettings",
    "Dispatcher",
    "SendResult",
    "TaskRequest",
    "celery_config",
    # Results
    "TaskHandle",
    "TaskState",
    "TaskStatus",
    # Labs
    "LabTime",
    # Tasks
    "CLEANUP_TIMEOUT_LABS",
    "CREATE_LAB_POD",
    "DELETE_LAB_POD",
    "HEALTH_CHECK_PODS",
    "SCALE_LAB_RESOURCES",
    "SYNC_LAB_STATUS",
    "CleanupTimeoutLabs",
    "CreateLabPod",
    "DeleteLabPod",
    "HealthCheckPods",
    "ScaleLabResources",
    "SyncLabStatus",
    # Errors
    "DispatcherError",
    "EndHasMoved",
    "ExtensionTooLong",
    "ExtensionTooShort",
    "InvalidSettings",
    "InvalidTask",
    "LabIsOver",
    "LabUnknown",
    "MalformedMessage",
    "MissingExtra",
    "NotConfirmed",
    "NotExtended",
    "NotSent",
    "PublishError",
    "TaskFailed",
    "TaskRevoked",
    "TaskTimeout",
    "TooManyLabs",
    "Unencodable",
    "Unroutable",
]
