"""Gather what is seen of a lab that failed, and post a Kubernetes Event that says why it failed.

jobs.handlers.give_up and the health check call this before the lab's objects go. It takes seconds at most,
answers of the API server are read to a limit, and no trouble here becomes the task's: what is not to be had
is a note beside the rest. The lab's row and the ledger are the truth.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from dispatcher.text import printable
from jobs.cluster.client import ApiError, Cluster, Manifest
from jobs.cluster.pod_facts import (
    LOG_LINES,
    Seen,
    bounded,
    log_lines,
    most_telling_container,
    newest_events,
    pod_facts,
    short,
)
from jobs.config.naming import belongs_to_lab, is_anothers, lab_selector, object_label_of
from jobs.errors import JobError
from jobs.waiting import within

logger = logging.getLogger(__name__)

COMPONENT = "autolabs-jobs"
#: Seconds that the task waits for all evidence, and for each answer.
PATIENCE_S = 2.0
_ANSWER_S = 1.0
#: Seconds that the task waits for the Event.
EVENT_PATIENCE_S = 1.0
#: Bytes that are read at most.
_POD_LIMIT, _EVENTS_LIMIT, _LOG_LIMIT = 1 << 22, 1 << 19, 1 << 16
#: Longest message of an Event, in bytes (k8s.io/kubernetes/pkg/apis/core/validation, NoteLengthLimit).
_MESSAGE = 1024


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was seen of a lab that failed."""

    #: What the ledger keeps.
    seen: Seen
    #: As the API server gave it; None when there was none, or no answer.
    pod: Manifest | None = None
    #: True: the API server told whether there is a Pod.
    answered: bool = False


def collect(
    connect: Callable[[], Cluster],
    namespace: str,
    lab_instance_id: int,
    *,
    pod_name: str | None,
    object_label: str | None = None,
) -> Evidence:
    """Return what is seen of the lab.

    `connect` is called in another thread; by `pod_name` the events of a Pod that is gone are found. A Pod
    with another object label is not looked at: it is another student's.
    """
    look, note = _Look(connect, namespace, lab_instance_id, object_label), ""
    try:
        within(PATIENCE_S, lambda: look.gather(pod_name))
    except Exception as exc:  # no trouble here may become the task's
        note = f"not all could be read: {short(exc)}"
    # A copy, because a thread that is late goes on writing.
    seen = dict(look.seen)
    pod = look.pod
    return Evidence(bounded({**seen, "note": note} if note else seen), pod, pod is not None or not note)


class _Look:
    """One look at one lab; `seen` has what there is so far."""

    def __init__(
        self,
        connect: Callable[[], Cluster],
        namespace: str,
        lab_instance_id: int,
        object_label: str | None,
    ) -> None:
        self._connect = connect
        self._core = f"/api/v1/namespaces/{namespace}"
        self._lab_instance_id = lab_instance_id
        self._object_label = object_label
        self.seen: Seen = {}
        self.pod: Manifest | None = None

    def gather(self, pod_name: str | None) -> None:
        self._cluster = self._connect()
        pod = self._find_pod()
        if pod is None:
            self.seen["note"] = "the lab had no Pod"
            if pod_name:
                self._add("events", lambda: self._events(f"involvedObject.name={pod_name}"))
            return
        self.pod = pod
        self.seen |= pod_facts(pod)
        self._add("events", lambda: self._events(f"involvedObject.uid={pod['metadata']['uid']}"))
        self._add("log", lambda: self._log(pod))

    def _add(self, part: str, read: Callable[[], Any]) -> None:
        try:
            if found := read():
                self.seen[part] = found
        except Exception as exc:  # such as an answer that was cut off
            earlier = f"{self.seen['note']}; " if "note" in self.seen else ""
            self.seen["note"] = f"{earlier}no {part}: {short(exc)}"

    def _find_pod(self) -> Manifest | None:
        pods = self._list("pods", _POD_LIMIT, labelSelector=lab_selector(self._lab_instance_id))
        ours = [
            pod
            for pod in pods
            if belongs_to_lab(pod, self._lab_instance_id)
            and not is_anothers(object_label_of(pod), self._object_label)
        ]
        return max(ours, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), default=None)

    def _events(self, of_pod: str) -> list[dict[str, Any]]:
        events = self._list("events", _EVENTS_LIMIT, fieldSelector=of_pod)
        return newest_events([event for event in events if event.get("reportingComponent") != COMPONENT])

    def _log(self, pod: Manifest) -> dict[str, Any] | None:
        container = most_telling_container(pod)
        if container is None:
            return None
        previous = container.get("restartCount", 0) > 0
        lines = self._log_lines(pod, container["name"], previous=previous)
        if previous and not lines:  # the kubelet does not keep it any more
            previous, lines = False, self._log_lines(pod, container["name"], previous=False)
        return {"container": short(container["name"]), "previous": previous, "lines": lines}

    def _log_lines(self, pod: Manifest, container: str, *, previous: bool) -> list[str]:
        path = f"{self._core}/pods/{pod['metadata']['name']}/log"
        query = {"container": container, "tailLines": str(LOG_LINES), "limitBytes": str(_LOG_LIMIT)}
        if previous:
            query["previous"] = "true"
        try:
            # Far more than is kept: limitBytes cuts off the end of these lines, not their beginning.
            return log_lines(self._cluster.read_text(path, limit=_LOG_LIMIT, timeout_s=_ANSWER_S, **query))
        except ApiError as exc:
            if previous and exc.status in (400, 404):
                return []
            raise

    def _list(self, collection: str, limit: int, **query: str) -> list[Manifest]:
        text = self._cluster.read_text(
            f"{self._core}/{collection}", limit=limit, timeout_s=_ANSWER_S, **query
        )
        return [item for item in json.loads(text).get("items") or [] if isinstance(item, dict)]


def event_reason(cause: str) -> str:
    """Return the reason of a cause in the way of Kubernetes: image_not_loadable -> LabImageNotLoadable."""
    return "Lab" + "".join(word.capitalize() for word in cause.split("_"))


def make_event(error: JobError, *, namespace: str, pod_name: str, pod_uid: str | None) -> Manifest:
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
        patience_s = EVENT_PATIENCE_S
        created = within(patience_s, lambda: cluster.create_once(path, event, timeout_s=patience_s))
    except Exception as exc:  # no trouble here may become the task's
        extra["action"] = "event_missed"
        logger.warning("no Kubernetes Event says that the lab failed: %s", exc, extra=extra)
        return
    logger.info("Kubernetes Event %s", "posted" if created else "was there already", extra=extra)
