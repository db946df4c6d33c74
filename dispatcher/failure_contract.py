"""Words about failures that all parts agree on: categories, audiences, event types, dead-letter headers.

Containers write them into rows and headers (jobs.failures has the causes, jobs.container.settle the dead
letters); commands and backends read them there.
"""

from __future__ import annotations

import enum

#: Longest life of a container in seconds (keda.profiles). A run that began earlier without an end was killed.
CONTAINER_DEADLINE_S = 1200
#: Seconds until a failure comes back that cannot be settled while the database or the cluster is away.
COME_BACK_S = 80


class Category(str, enum.Enum):
    """The kind of a failure, as `error_category` says it."""

    #: The image of the lab cannot be loaded, or does not run.
    PERMANENT_IMAGE_ERROR = "PERMANENT_IMAGE_ERROR"
    #: The platform lacks a right.
    PERMANENT_PERMISSION_ERROR = "PERMANENT_PERMISSION_ERROR"
    #: The request or a template is wrong.
    PERMANENT_INVALID_REQUEST = "PERMANENT_INVALID_REQUEST"
    #: The cluster has no room now.
    TEMPORARY_RESOURCE_ERROR = "TEMPORARY_RESOURCE_ERROR"
    #: A service did not answer.
    TEMPORARY_NETWORK_ERROR = "TEMPORARY_NETWORK_ERROR"


class Audience(str, enum.Enum):
    """The person who is told of a failure, because nobody else can act."""

    STUDENT = "student"
    TEACHER = "teacher"
    ADMIN = "admin"
    #: Nobody has to act.
    NOBODY = "nobody"


class EventType:
    """The subjects of notifications; docs/reference/notifications.md has what each one says."""

    LAB_FAILED = "lab.failed"
    STOP_FAILED = "lab.stop_failed"
    ENDS_SOON = "lab.ends_soon"
    OUT_OF_MEMORY = "lab.out_of_memory"
    RESTARTED = "lab.restarted"
    UNREACHABLE = "lab.unreachable"
    CLEANUP_REFUSED = "platform.cleanup_refused"
    HEALTH_REFUSED = "platform.health_refused"
    SYNC_REFUSED = "platform.sync_refused"


class DeadLetterHeader:
    """Headers by which a container tells a dead letter's story; `autolabs dlq` reads them."""

    REASON = "x-autolabs-reason"
    CATEGORY = "x-autolabs-category"
    CAUSE = "x-autolabs-cause"
    TASK_ID = "x-autolabs-task-id"
    TASK = "x-autolabs-task"
    LAB_INSTANCE_ID = "x-autolabs-lab-instance-id"
    ATTEMPTS = "x-autolabs-attempts"
    FIRST_ERROR = "x-autolabs-first-error"
    LAST_ERROR = "x-autolabs-last-error"
    DEAD_AT = "x-autolabs-dead-at"
    QUEUE = "x-autolabs-queue"
    ROUTING_KEY = "x-autolabs-routing-key"
    JOB = "x-autolabs-job"
    POD = "x-autolabs-pod"
    #: The message's own headers as a text, if the broker's client cannot encode them again.
    ORIGINAL_HEADERS = "x-autolabs-original-headers"
