"""A scripted API server that keeps labs' objects, for races that a real cluster rarely shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.http_server import Answer, Request, status_object

Manifest = dict[str, Any]
READY: Manifest = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}


class FakeCluster:
    """Answer get, list, create, delete and watch; every Pod has `pod_status` as soon as it is created."""

    def __init__(self, pod_status: Manifest = READY) -> None:
        self.pod_status = pod_status
        self.objects: dict[str, Manifest] = {}
        #: Called with the path before an object is deleted, and after one was created.
        self.on_delete: Callable[[str], None] = lambda _path: None
        self.on_create: Callable[[str], None] = lambda _path: None
        #: True: the server answers 503 to deletions.
        self.refuses_deletes = False
        #: Paths that are answered with 503.
        self.unavailable: set[str] = set()
        #: Seconds by which the server's clock is ahead.
        self.ahead_s = 0.0
        self.deleted: list[str] = []
        self.namespaces = {"labs"}
        #: Events of Pods, those that are posted too.
        self.events: list[Manifest] = []
        #: Called with the query of a request for a container's log.
        self.log: Callable[[dict[str, str]], Answer] = lambda _query: Answer(content=b"")
        #: The port that Services get and that their address answers on.
        self.port = 0

    def __call__(self, request: Request) -> Answer:
        return replace(self._answer(request), ahead_s=self.ahead_s)

    def _answer(self, request: Request) -> Answer:
        path, _, query = request.path.partition("?")
        if path in self.unavailable:
            return Answer(503, status_object(503, "ServiceUnavailable", "not now"))
        if path == "/version":
            return Answer(content={})
        if request.method == "DELETE":
            return self._delete(path, request.json().get("preconditions", {}).get("uid"))
        if path.endswith("/events"):
            return self._events(request, query)
        if request.method == "POST":
            return self._create(path, request.json())
        if path.endswith("/log"):
            return self.log({name: value for name, (value,) in parse_qs(query).items()})
        if "watch=1" in query:
            return Answer(content=[])
        if path.endswith(("/pods", "/services", "/networkpolicies")):
            return self._list(path, {name: values[0] for name, values in parse_qs(query).items()})
        found = self.objects.get(path)
        if path.rpartition("/")[0] == "/api/v1/namespaces" and path.rpartition("/")[2] in self.namespaces:
            found = {"kind": "Namespace"}
        return Answer(content=found) if found else Answer(404, status_object(404, "NotFound", path))

    def names(self) -> set[str]:
        return {item["metadata"]["name"] for item in self.objects.values()}

    def serve_at(self, url: str) -> None:
        """Give Services the address of the server itself, so that they answer."""
        self.port = urlsplit(url).port or 0

    def add(self, path: str, manifest: Manifest) -> None:
        version = str(len(self.objects) + 1)
        created = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
        made = {"uid": f"uid-{path}", "creationTimestamp": created}
        metadata = {**made, **manifest["metadata"], "resourceVersion": version}
        self.objects[path] = {**manifest, "metadata": metadata}

    def _create(self, collection: str, manifest: Manifest) -> Answer:
        path = f"{collection}/{manifest['metadata']['name']}"
        if path in self.objects:
            return Answer(409, status_object(409, "AlreadyExists", f"{path} already exists"))
        if manifest["kind"] == "Pod":
            manifest["status"] = self.pod_status
        if manifest["kind"] == "Service":
            manifest["spec"] |= {"clusterIP": "127.0.0.1", "ports": [{"port": self.port}, {"port": 1}]}
        self.add(path, manifest)
        self.on_create(path)
        return Answer(content=self.objects.get(path, manifest))

    def _delete(self, path: str, uid: str | None) -> Answer:
        if self.refuses_deletes:
            return Answer(503, status_object(503, "ServiceUnavailable", "not now"))
        if uid and path in self.objects and self.objects[path]["metadata"]["uid"] != uid:
            return Answer(409, status_object(409, "Conflict", "the UID in the precondition differs"))
        self.on_delete(path)
        self.deleted.append(path)
        self.objects.pop(path, None)
        return Answer(content={})

    def add_event(self, pod: Manifest, **fields: Any) -> None:
        of = {"name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
        name = f"event-{len(self.events)}"
        self.events.append({"metadata": {"name": name}, "involvedObject": of, "type": "Warning", **fields})

    def _events(self, request: Request, query: str) -> Answer:
        if request.method == "POST":
            event = request.json()
            if event["metadata"]["name"] in {known["metadata"]["name"] for known in self.events}:
                return Answer(409, status_object(409, "AlreadyExists", "it is there"))
            self.events.append(event)
            return Answer(201, event)
        field, _, wanted = parse_qs(query)["fieldSelector"][0].partition("=")
        key = field.removeprefix("involvedObject.")
        return Answer(content={"items": [e for e in self.events if e["involvedObject"].get(key) == wanted]})

    def _list(self, path: str, query: dict[str, str]) -> Answer:
        wanted = _parsed(query.get("labelSelector", ""))
        items = [
            item
            for key, item in self.objects.items()
            if key.startswith(f"{path}/")
            and all(item["metadata"]["labels"].get(name) in values for name, values in wanted.items())
        ]
        first = int(query.get("continue", 0))
        after = first + int(query.get("limit", len(items)))
        more = {"continue": str(after)} if after < len(items) else {}
        return Answer(content={"metadata": {"resourceVersion": "1", **more}, "items": items[first:after]})


def _parsed(selector: str) -> dict[str, set[str]]:
    """Return label -> values of `a=1,b in (2,3)`."""
    parts = re.findall(r"([^=, ]+)(?:=([^,]+)| in \(([^)]+)\))", selector)
    return {name: {one} if one else {*several.split(",")} for name, one, several in parts}
