"""How KEDA logs in to RabbitMQ: as a user that may do nothing but look at queues."""

from __future__ import annotations

from typing import Any

from keda.podspec import NAMESPACE

NAME = "autolabs-rabbitmq"
SECRET = "autolabs-keda"  # noqa: S105  # the name of a Secret, not its content


def make_trigger_authentication() -> dict[str, Any]:
    """Return the TriggerAuthentication that the ScaledJobs refer to."""
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "TriggerAuthentication",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {
                "app.kubernetes.io/name": NAME,
                "app.kubernetes.io/instance": NAME,
                "app.kubernetes.io/component": "keda",
                "app.kubernetes.io/part-of": "autolabs",
                "app.kubernetes.io/managed-by": "autolabs-keda",
            },
        },
        "spec": {"secretTargetRef": [{"parameter": "host", "name": SECRET, "key": "host"}]},
    }
