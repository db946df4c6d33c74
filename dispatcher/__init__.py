"""Publish AutoLabs tasks from a backend: Celery-compatible messages, confirmed by the broker."""

from __future__ import annotations

from dispatcher.celery_config import celery_config
from dispatcher.client import Dispatcher
from dispatcher.errors import (
    DispatcherError,
    InvalidSettings,
    InvalidTask,
    MalformedMessage,
    NotConfirmed,
    PublishError,
    Unroutable,
)
from dispatcher.settings import BrokerSettings
from dispatcher.tasks import (
    CLEANUP_TIMEOUT_LABS,
    CREATE_LAB_POD,
    DELETE_LAB_POD,
    CleanupTimeoutLabs,
    CreateLabPod,
    DeleteLabPod,
)

__all__ = [
    # Publishing
    "BrokerSettings",
    "Dispatcher",
    "celery_config",
    # Tasks
    "CLEANUP_TIMEOUT_LABS",
    "CREATE_LAB_POD",
    "DELETE_LAB_POD",
    "CleanupTimeoutLabs",
    "CreateLabPod",
    "DeleteLabPod",
    # Errors
    "DispatcherError",
    "InvalidSettings",
    "InvalidTask",
    "MalformedMessage",
    "NotConfirmed",
    "PublishError",
    "Unroutable",
]
