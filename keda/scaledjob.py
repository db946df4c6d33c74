"""Make the ScaledJob of a queue, one Kubernetes Job with one container for each message, and KEDA's login.

KEDA 2.20.2 or newer. The amqp scaler counts messages that are ready. `accurate` with the condition
Ready subtracts from them the Jobs whose container holds no message yet, so that each message gets
one Job and no Job finds the queue empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keda.podspec import NAMESPACE, make_common_labels, make_labels, make_pod_template
from keda.profiles import Profile

AUTHENTICATION = "autolabs-rabbitmq"
#: Login of a user that may do nothing but look at queues.
SECRET = "autolabs-keda"  # noqa: S105  # the name of a Secret, not its content


def make_trigger_authentication() -> dict[str, Any]:
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "TriggerAuthentication",
        "metadata": {
            "name": AUTHENTICATION,
            "namespace": NAMESPACE,
            "labels": make_common_labels(
                AUTHENTICATION, instance=AUTHENTICATION, component="keda", managed_by="autolabs-keda"
            ),
        },
        # KEDA takes a key that is not there for an empty value: plain, or amqps by its own authorities.
        "spec": {
            "secretTargetRef": [
                {"parameter": parameter, "name": SECRET, "key": key}
                for parameter, key in (("host", "host"), ("tls", "tls"), ("ca", "ca.crt"))
            ]
        },
    }


def make_scaled_job(profile: Profile, *, image: str, env: Mapping[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledJob",
        "metadata": {"name": profile.name, "namespace": NAMESPACE, "labels": make_labels(profile)},
        "spec": {
            # A look is one passive declare, and half an interval is what a message waits for it.
            "pollingInterval": 1,
            "minReplicaCount": profile.spares,
            "maxReplicaCount": profile.max_replicas,
            # The logs of a class of 30 with its singles and retries stay readable. Spares that found
            # nothing, six an hour, count too.
            "successfulJobsHistoryLimit": 100,
            "failedJobsHistoryLimit": 20,
            # KEDA's default ends every Job that is at work at each change of this spec.
            "rollout": {"strategy": "gradual"},
            "scalingStrategy": {"strategy": "accurate", "pendingPodConditions": ["Ready"]},
            "jobTargetRef": _make_job_spec(profile, image, env),
            "triggers": [
                {
                    "type": "rabbitmq",
                    "metadata": {
                        "protocol": "amqp",
                        "queueName": profile.queue,
                        "mode": "QueueLength",
                        # The default is 20 messages for one Job.
                        "value": "1",
                    },
                    "authenticationRef": {"name": AUTHENTICATION},
                }
            ],
        },
    }


def _make_job_spec(profile: Profile, image: str, env: Mapping[str, str]) -> dict[str, Any]:
    return {
        "parallelism": 1,
        "completions": 1,
        # The broker alone delivers again; a second retrier would double the work.
        "backoffLimit": 0,
        "activeDeadlineSeconds": profile.active_deadline_s,
        # At most an hour to read a log; ends Jobs also while the ScaledJob is paused or KEDA is away.
        "ttlSecondsAfterFinished": 3600,
        # A drained node is no failure; the replacement takes the message that came back.
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
            ]
        },
        "podReplacementPolicy": "Failed",
        "template": make_pod_template(profile, image=image, env=env),
    }
