"""Make the pod of every container of ours: of a job here, of a CronJob by cronjobs.manifests."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any

from keda.profiles import Profile

#: RBAC and the admission policies of deploy/base name it too, so it is no option.
NAMESPACE = "platform"

#: Bound by the container only while it holds its message (jobs.container.consumer).
READY_PORT = 8081
SECRET = "autolabs-jobs"  # noqa: S105  # the name of a Secret, not its content
SERVICE_ACCOUNT = "celery-workers-sa"
#: Class of deploy/base: on full nodes a free place is ours before a lab that waits gets it.
PRIORITY_CLASS = "autolabs-platform"
# A tag or a digest after the last path component: a port of the registry is not a tag.
_IMAGE = re.compile(r"[^\s@]*[^\s@:/](:\w[\w.-]{0,127}|(:\w[\w.-]{0,127})?@sha256:[0-9a-f]{64})")

#: Settings that may differ from the defaults in jobs.config.environment; the others are ours or secret.
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


def make_common_labels(name: str, *, instance: str, component: str, managed_by: str) -> dict[str, str]:
    """Return the labels that Kubernetes recommends, for an object of ours."""
    return {
        "app.kubernetes.io/name": name,
        "app.kubernetes.io/instance": instance,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/part-of": "autolabs",
        "app.kubernetes.io/managed-by": managed_by,
    }


def make_labels(profile: Profile) -> dict[str, str]:
    return {
        **make_common_labels("autolabs-job", instance=profile.name, component="job", managed_by="keda"),
        "autolabs.io/queue": profile.queue,
        "autolabs.io/priority": profile.priority,
        "autolabs.io/task": profile.task,
    }


def pinned_image(text: str) -> str:
    """Return an image that an option of a command line names. Raises what argparse tells of."""
    # With latest and IfNotPresent two nodes may run different code.
    if not _IMAGE.fullmatch(text) or text.endswith(":latest"):
        raise argparse.ArgumentTypeError(f"{text!r} needs a tag other than latest, or a digest")
    return text


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
        "spec": make_pod_spec(
            "job",
            image=image,
            command=["python3", "-m", "jobs"],
            env={
                "AUTOLABS_QUEUE": profile.queue,
                "CLAIM_WAIT_S": str(profile.claim_wait_s),
                "SPARES": str(profile.spares),
                "READY_PORT": str(READY_PORT),
                **env,
            },
            # Measured: 45 MiB as a spare, 50 at the peak of a create; the limit leaves room for a
            # message at the size limit. No tight CPU limit: the start is all computing.
            resources={
                "requests": {"cpu": "25m", "memory": "64Mi"},
                "limits": {"cpu": "1", "memory": "256Mi"},
            },
            secrets={"secret": {"secretName": SECRET, "defaultMode": 0o440}},
            # A stop gives the message back at once.
            of_pod={"terminationGracePeriodSeconds": 10},
            of_container={
                # KEDA's CRD requires the protocol.
                "ports": [{"name": "claimed", "containerPort": READY_PORT, "protocol": "TCP"}],
                # Ready means: this container holds its message. A connect costs no process, unlike exec.
                "readinessProbe": {
                    "tcpSocket": {"port": "claimed"},
                    "periodSeconds": 1,
                    "failureThreshold": 1,
                },
            },
        ),
    }


def make_pod_spec(
    name: str,
    *,
    image: str,
    command: Sequence[str],
    env: Mapping[str, str],
    resources: Mapping[str, Mapping[str, str]],
    secrets: Mapping[str, Any],
    with_cluster: bool = True,
    of_pod: Mapping[str, Any] | None = None,
    of_container: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the spec of a pod with one container of ours, which ends by itself.

    `command` has no shell in it, because SIGTERM has to reach the process itself. `secrets` is the source of
    the volume with the secrets. `with_cluster`: it talks to the API server, with the rights of the
    ServiceAccount. `of_pod` and `of_container` are further keys of the two.
    """
    fields = {"POD_NAME": "metadata.name", "JOB_NAME": "metadata.labels['batch.kubernetes.io/job-name']"}
    # For the key of a kubeconfig in the bucket, which urllib3 takes from a file alone.
    tmp = {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}
    tmp_mount = {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108  # the container's own
    return {
        # One that is started again in its pod would take a second message.
        "restartPolicy": "Never",
        "priorityClassName": PRIORITY_CLASS,
        **({"serviceAccountName": SERVICE_ACCOUNT} if with_cluster else {}),
        "automountServiceAccountToken": with_cluster,
        "enableServiceLinks": False,
        **(of_pod or {}),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": name,
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": list(command),
                "env": [
                    *({"name": key, "value": value} for key, value in env.items()),
                    *(
                        {"name": key, "valueFrom": {"fieldRef": {"fieldPath": path}}}
                        for key, path in fields.items()
                    ),
                ],
                **(of_container or {}),
                "resources": {part: dict(values) for part, values in resources.items()},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [
                    {"name": "secrets", "mountPath": "/run/secrets/autolabs", "readOnly": True},
                    *([tmp_mount] if with_cluster else []),
                ],
            }
        ],
        "volumes": [{"name": "secrets", **secrets}, *([tmp] if with_cluster else [])],
    }
