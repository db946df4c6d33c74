"""An API server in this process with the interface of jobs.cluster.client.Cluster, under the real rules.

Objects have uids and versions; a delete names its uid; a Pod with a node goes only after its grace period;
what a Pod owns is collected some time after it; watches begin at a version. Kubelet, garbage collector
and meddlers are methods that a history calls whenever it likes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TypeVar

from jobs.cluster.client import ApiError, ApiUnavailable, Manifest

T = TypeVar("T")

PODS = "/api/v1/namespaces/labs/pods"
#: Seconds by which a watch that sees nothing moves the clock.
_SILENCE_S = 3.0

RUNNING: Manifest = {
    "phase": "Running",
    "conditions": [{"type": "Ready", "status": "True"}],
    "containerStatuses": [{"name": "lab", "state": {"running": {}}}],
}
NO_IMAGE: Manifest = {
    "phase": "Pending",
    "containerStatuses": [
        {"name": "lab", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}
    ],
}
EVICTED: Manifest = {"phase": "Failed", "reason": "Evicted", "message": "the node had no room"}


class Clock:
    """Seconds that pass only when a history, or a watch that sees nothing, lets them."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def copy(manifest: Manifest) -> Manifest:
    return dict(json.loads(json.dumps(manifest)))


class SimulatedCluster:
    """`pause` is called before each request takes effect, and while a watch has nothing to tell.

    `on_delete` gets each Pod that a client is about to delete.
    """

    def __init__(
        self, pause: Callable[[str], None], clock: Clock, on_delete: Callable[[Manifest], None]
    ) -> None:
        self.objects: dict[str, Manifest] = {}
        #: Raised by the next request: before it takes effect, or after it (its answer is lost).
        self.next_error: tuple[bool, Exception] | None = None
        #: The next watch begins at a version that the server keeps no more.
        self.next_watch_expired = False
        self._pause, self._clock, self._on_delete = pause, clock, on_delete
        self._version = 0
        self._events: list[tuple[int, str, str, Manifest]] = []

    # As jobs.cluster.client.Cluster has them.

    def get(self, path: str) -> Manifest | None:
        def work() -> Manifest | None:
            return copy(self.objects[path]) if path in self.objects else None

        return self._request("get", work)

    def list_items(self, path: str, **query: str) -> tuple[list[Manifest], str]:
        return self._request("list", lambda: (self._select(path, query), str(self._version)))

    def create(self, path: str, manifest: Manifest) -> Manifest | None:
        return self._request("create", lambda: self._create(path, manifest))

    def delete(self, path: str, *, uid: str, grace_s: int | None) -> None:
        def work() -> None:
            found = self.objects.get(path)
            # 404 and 409, which the client takes for deleted.
            if found is None or found["metadata"]["uid"] != uid:
                return
            if found["kind"] == "Pod":
                self._on_delete(found)
            if found["kind"] == "Pod" and grace_s != 0 and not _ended(found):
                if "deletionTimestamp" not in found["metadata"]:
                    found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
                    self._changed("MODIFIED", path)
            else:
                self.remove(path)

        self._request("delete", work)

    def watch(
        self, path: str, *, resource_version: str, timeout_s: float, **query: str
    ) -> Iterator[tuple[str, Manifest]]:
        name = query["fieldSelector"].removeprefix("metadata.name=")
        seen, end = int(resource_version), self._clock.now + timeout_s
        if self.next_watch_expired:
            self.next_watch_expired = False
            yield "ERROR", {"kind": "Status", "code": 410, "metadata": {}}
            return
        while True:
            for version, kind, of, manifest in self._events:
                if version > seen and of == f"{path}/{name}":
                    seen = version
                    yield kind, copy(manifest)
            if self._clock.now >= end:
                return
            told = len(self._events)
            self._pause("watch")
            if len(self._events) == told:
                self._clock.now = min(end, self._clock.now + _SILENCE_S)

    def read_text(self, path: str, *, limit: int, timeout_s: float, **query: str) -> str:
        if "labelSelector" in query:
            return json.dumps({"items": self._select(path, query)})
        return "" if path.endswith("/log") else json.dumps({"items": []})

    def create_once(self, path: str, manifest: Manifest, *, timeout_s: float) -> bool:
        return True

    def _request(self, name: str, work: Callable[[], T]) -> T:
        self._pause(name)
        error, self.next_error = self.next_error, None
        if error and error[0]:
            raise error[1]
        answer = work()
        if error:
            raise error[1]
        return answer

    def _select(self, path: str, query: dict[str, str]) -> list[Manifest]:
        wanted = dict(part.split("=") for part in query["labelSelector"].split(","))
        return [
            copy(manifest)
            for key, manifest in self.objects.items()
            if key.rpartition("/")[0] == path and wanted.items() <= manifest["metadata"]["labels"].items()
        ]

    def _create(self, collection: str, manifest: Manifest) -> Manifest | None:
        path = f"{collection}/{manifest['metadata']['name']}"
        if path in self.objects:
            return None
        made = copy(manifest)
        made["metadata"]["uid"] = f"uid-{self._version + 1}"
        if made["kind"] == "Pod":
            made["status"] = {"phase": "Pending", "conditions": []}
        if made["kind"] == "Service":
            made["spec"]["clusterIP"] = "10.96.0.9"
        self.objects[path] = made
        return copy(self._changed("ADDED", path))

    def _changed(self, event: str, path: str) -> Manifest:
        self._version += 1
        manifest = self.objects[path]
        manifest["metadata"]["resourceVersion"] = str(self._version)
        self._events.append((self._version, event, path, copy(manifest)))
        return manifest

    # What else happens in a cluster.

    @property
    def version(self) -> int:
        """Another number after each change of an object."""
        return self._version

    def pods(self, wanted: Callable[[Manifest], bool] = lambda _pod: True) -> list[str]:
        return [path for path, item in self.objects.items() if item["kind"] == "Pod" and wanted(item)]

    def of_lab(self, lab: int) -> list[Manifest]:
        return [item for item in self.objects.values() if _label(item) == str(lab)]

    def set_status(self, path: str, status: Manifest) -> None:
        self.objects[path]["status"] = copy(status)
        self._changed("MODIFIED", path)

    def remove(self, path: str) -> None:
        self._changed("DELETED", path)
        del self.objects[path]

    def garbage(self) -> list[str]:
        """Return what is owned by Pods that are gone."""
        uids = {item["metadata"]["uid"] for item in self.objects.values()}
        owners = {path: _owners(item) for path, item in self.objects.items()}
        return [path for path, of in owners.items() if of and not any(one["uid"] in uids for one in of)]

    def collect_garbage(self) -> None:
        for path in self.garbage():
            self.remove(path)


def _label(item: Manifest) -> str | None:
    value = item["metadata"]["labels"].get("lab_instance_id")
    return None if value is None else str(value)


def _owners(item: Manifest) -> list[Manifest]:
    return list(item["metadata"].get("ownerReferences") or [])


def _ended(pod: Manifest) -> bool:
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def is_ready(pod: Manifest) -> bool:
    return pod["status"].get("conditions") == RUNNING["conditions"] and is_live(pod)


def is_live(pod: Manifest) -> bool:
    return "deletionTimestamp" not in pod["metadata"] and not _ended(pod)


def is_going(pod: Manifest) -> bool:
    return "deletionTimestamp" in pod["metadata"]


API_AWAY = ApiUnavailable("the API server does not answer")
QUOTA = ApiError(403, "Forbidden", 'pods "x" is forbidden: exceeded quota: labs')
