"""The pod of a job container."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keda.profiles import Profile

#: RBAC and the admission policies of deploy/base name it too, so it is no option.
NAMESPACE = "platform"

#: Bound by the container only while it holds its message (jobs.readiness).
READY_PORT = 8081
SECRET = "autolabs-jobs"  # noqa: S105  # the name of a Secret, not its content
SERVICE_ACCOUNT = "celery-workers-sa"


#: Settings that may differ from the defaults in jobs.settings; the others are ours or secret.
OVERRIDABLE = (
    "CELERY_TASK_MAX_RETRIES",
    "CELERY_TASK_RETRY_DELAY",
    "CELERY_TASK_RETRY_BACKOFF",
    "CELERY_TASK_RETRY_JITTER",
    "CELERY_RESULT_EXPIRES",
    "AMQP_HEARTBEAT_S",
    "LOG_LEVEL",
    "S3_BUCKET",
    "KUBECONFIG_OBJECT",
)


def make_labels(profile: Profile) -> dict[str, str]:
    """Return the labels of a ScaledJob, its Jobs and their pods."""
    return {
        "app.kubernetes.io/name": "autolabs-job",
        "app.kubernetes.io/instance": profile.name,
        "app.kubernetes.io/component": "job",
        "app.kubernetes.io/part-of": "autolabs",
        "app.kubernetes.io/managed-by": "keda",
        "autolabs.io/queue": profile.queue,
        "autolabs.io/priority": profile.priority,
        "autolabs.io/task": profile.task,
    }


def make_pod_template(profile: Profile, *, image: str, env: Mapping[str, str]) -> dict[str, Any]:
    """Return the pod template of a ScaledJob; `env` has settings of OVERRIDABLE."""
    return {
        "metadata": {
            "labels": make_labels(profile),
            "annotations": {
                # A busy container must not be moved to save a node.
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                "karpenter.sh/do-not-disrupt": "true",
            },
        },
        "spec": {
            # KEDA's default OnFailure would take a second message in the same pod.
            "restartPolicy": "Never",
            "serviceAccountName": SERVICE_ACCOUNT,
            "automountServiceAccountToken": True,
            "enableServiceLinks": False,
            # A stop gives the message back at once.
            "terminationGracePeriodSeconds": 10,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [_make_container(profile, image, env)],
            "volumes": [
                {"name": "secrets", "secret": {"secretName": SECRET, "defaultMode": 0o440}},
                {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
            ],
        },
    }


def _make_container(profile: Profile, image: str, env: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": "job",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        # No shell in between: SIGTERM has to reach the process that holds the message.
        "command": ["python3", "-m", "jobs"],
        "env": _make_env(profile, env),
        # KEDA's CRD requires the protocol.
        "ports": [{"name": "claimed", "containerPort": READY_PORT, "protocol": "TCP"}],
        # Ready means: this container holds its message. A connect costs no process, unlike exec.
        "readinessProbe": {
            "tcpSocket": {"port": "claimed"},
            "periodSeconds": 1,
            "failureThreshold": 1,
        },
        "resources": {
            # Measured: 45 MiB as a spare, 50 at the peak of a create; the limit leaves room for a
            # message at the size limit. No tight CPU limit: the start is all computing.
            "requests": {"cpu": "25m", "memory": "64Mi"},
            "limits": {"cpu": "1", "memory": "256Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "secrets", "mountPath": "/run/secrets/autolabs", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # the container's own
        ],
    }


def _make_env(profile: Profile, env: Mapping[str, str]) -> list[dict[str, Any]]:
    values = {
        "AUTOLABS_QUEUE": profile.queue,
        "CLAIM_WAIT_S": str(profile.claim_wait_s),
        "SPARES": str(profile.spares),
        "READY_PORT": str(READY_PORT),
        **env,
    }
    fields = {
        "POD_NAME": "metadata.name",
        "JOB_NAME": "metadata.labels['batch.kubernetes.io/job-name']",
    }
    return [{"name": name, "value": value} for name, value in values.items()] + [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()
    ]
