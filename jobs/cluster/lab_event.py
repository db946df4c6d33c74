"""A Kubernetes Event on the lab's Pod that says why the lab failed; `kubectl get events` outlives the Pod.

One per lab and cause, by its name. Best effort: the lab's row and the ledger are the truth.
"""

from __future__ import annotations

import logging
from datetime import datetime, timezone

from dispatcher.text import printable
from jobs.bounded import within
from jobs.cluster.client import Cluster, Manifest
from jobs.errors import JobError

logger = logging.getLogger(__name__)

COMPONENT = "autolabs-jobs"
#: Seconds that the task waits.
PATIENCE_S = 1.0
#: Of an Event's message (k8s.io/kubernetes/pkg/apis/core/validation/events.go, NoteLengthLimit), in bytes.
_MESSAGE = 1024


def event_reason(cause: str) -> str:
    """Return the reason of a cause in the way of Kubernetes: image_not_loadable -> LabImageNotLoadable."""
    return "Lab" + "".join(word.capitalize() for word in cause.split("_"))


def make_event(error: JobError, *, namespace: str, pod_name: str, pod_uid: str | None) -> Manifest:
    """Return the Event of a failed lab."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    pod = {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": pod_name}
    cause = error.failure.cause
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": namespace, "name": f"{pod_name}.{cause.replace('_', '-')}"},
        "involvedObject": pod | ({"uid": pod_uid} if pod_uid else {}),
        "type": "Warning",
        "reason": event_reason(cause),
        "message": printable(error.sentence).encode()[:_MESSAGE].decode(errors="ignore"),
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def post_event(cluster: Cluster, event: Manifest) -> None:
    """Create the Event unless it is there; trouble is a warning in the log."""
    path = f"/api/v1/namespaces/{event['metadata']['namespace']}/events"
    extra = {"action": "event_posted", "reason": event["reason"], "event": event["metadata"]["name"]}
    try:
        created = within(PATIENCE_S, lambda: cluster.create_once(path, event, timeout_s=PATIENCE_S))
    except Exception as exc:  # no trouble here may become the task's
        extra["action"] = "event_missed"
        logger.warning("no Kubernetes Event says that the lab failed: %s", exc, extra=extra)
        return
    logger.info("Kubernetes Event %s", "posted" if created else "was there already", extra=extra)
