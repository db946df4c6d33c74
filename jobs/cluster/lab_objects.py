"""Ensure a lab's objects in the cluster, wait for Ready, and take them down.

An object that exists is adopted only if it carries our labels of this lab and the hash of the very
manifest we would apply. Service and NetworkPolicy are owned by the Pod, so they go when it goes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from jobs import steps
from jobs.cluster.client import ApiError, ApiUnavailable, Cluster, Manifest, api_failure
from jobs.cluster.pod_fields import State, all_run, state_of
from jobs.cluster.pod_status import late_status, starting_status
from jobs.config import naming
from jobs.config.manifests import LabManifests, selecting
from jobs.config.naming import LabIdentity
from jobs.errors import PermanentError
from jobs.failures import Failure

logger = logging.getLogger(__name__)

#: Seconds until deleted objects must be gone: twice what a Pod's default grace period takes.
GONE_TIMEOUT_S = 60.0
#: Seconds between looks at whether the lab is still wanted.
_MEANWHILE_S = 3.0
#: Seconds between watches that end early.
_WATCH_PAUSE_S = 0.3


def collections(namespace: str) -> dict[str, str]:
    """Return kind -> path of the objects that a lab has."""
    return {
        "Pod": f"/api/v1/namespaces/{namespace}/pods",
        "Service": f"/api/v1/namespaces/{namespace}/services",
        "NetworkPolicy": f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
    }


class LabGone(Exception):
    """Raised when the Pod was deleted while it was waited for."""


class PodChanged(Exception):
    """Raised when a Pod is not as it was read any more; nothing was written."""


class LabObjects:
    """The objects of labs in one namespace; API errors come out as JobError."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._collections = collections(namespace)

    def ensure(
        self, lab_instance_id: int, manifests: LabManifests, *, before_replacing: Callable[[], None]
    ) -> tuple[Manifest, Manifest]:
        """Make sure of the three objects, the Pod first, and return the Pod and the Service as they are.

        `before_replacing` is called before an object of the lab that is another than the one asked for
        is deleted, and may raise.
        """
        deadline = time.monotonic() + GONE_TIMEOUT_S

        def ensure_one(manifest: Manifest) -> Manifest:
            return self._ensure_one(lab_instance_id, manifest, deadline, before_replacing)

        pod = ensure_one(manifests.pod)
        service = ensure_one(_owned(selecting(manifests.service, pod), pod))
        ensure_one(_owned(selecting(manifests.network_policy, pod), pod))
        return pod, service

    def create_beside(self, pod: Manifest, manifest: Manifest) -> Manifest | None:
        """Create a Service or NetworkPolicy that goes when the Pod goes; None: one of its name is there."""
        return self._create(manifest["kind"], _owned(selecting(manifest, pod), pod))

    def wait_ready(
        self, pod: Manifest, image: str, *, timeout_s: float, meanwhile: Callable[[], None]
    ) -> None:
        """Return as soon as the Pod is Ready; `meanwhile` is called every few seconds and may raise.

        Raises LabGone if the Pod was deleted, JobError if it can never be Ready, or was not in time.
        """
        began = time.monotonic()
        newest, deadline, runs_since = pod, began + timeout_s, None
        while time.monotonic() < deadline:
            for seen in self.states(newest, min(deadline, time.monotonic() + _MEANWHILE_S)):
                # A Pod that somebody takes down is GOING however its program ends, and is gone soon.
                status = starting_status(seen, image)
                if status.state is State.READY:
                    return
                if status.state is State.LOST:
                    raise status.error()
                newest = seen
                if runs_since is None and all_run(seen):
                    runs_since = time.monotonic()
            meanwhile()
        # `meanwhile` may have waited for the database while the Pod became Ready.
        newest = self._get("Pod", newest["metadata"]["name"]) or newest
        if state_of(newest) is State.READY and newest["metadata"]["uid"] == pod["metadata"]["uid"]:
            return
        # The wait may have been for room on a node, and the program's own start has only begun.
        began_late = runs_since is not None and runs_since - began > timeout_s / 2
        raise late_status(newest, image, timeout_s, began_late=began_late).error()

    def find(self, *lab_instance_ids: int) -> list[Manifest]:
        """Return everything in the cluster that carries the labels of these labs."""
        selector = naming.lab_selector(*lab_instance_ids)
        found: list[Manifest] = []
        with _job_errors():
            for kind, path in self._collections.items():
                items, _ = self._cluster.list_items(path, labelSelector=selector)
                found += [{**item, "kind": kind} for item in items]
        wanted = {str(lab) for lab in lab_instance_ids}
        if wrong := [item for item in found if naming.lab_of(item) not in wanted]:
            raise RuntimeError(f"the label selector returned foreign objects: {wrong}")
        return found

    def find_pod(self, name: str) -> Manifest | None:
        return self.find_named("Pod", name)

    def find_named(self, kind: str, name: str) -> Manifest | None:
        """Return an object by a name that anybody may have written; what can be no name is that of none."""
        return self._get(kind, name) if naming.is_object_name(name) else None

    def change_pod(self, pod: Manifest, change: Manifest, *, subresource: str = "") -> Manifest:
        """Merge a change into exactly this version of a Pod, and return the new one.

        Raises LabGone for a Pod that is gone, PodChanged for one that has another version, or is another Pod
        of this name, JobError when the API server refuses.
        """
        metadata = {key: pod["metadata"][key] for key in ("uid", "resourceVersion")}
        body = {**change, "metadata": {**change.get("metadata", {}), **metadata}}
        path = f"{self._collections['Pod']}/{pod['metadata']['name']}"
        with _job_errors():
            try:
                changed = self._cluster.patch(f"{path}/{subresource}".rstrip("/"), body, strategic=True)
            except ApiError as exc:
                if exc.status == 404:
                    raise LabGone from exc
                if exc.status == 409 or (exc.status == 422 and "metadata.uid:" in exc.message):
                    raise PodChanged from exc
                raise
        return {**changed, "kind": "Pod"}

    def delete_lab(
        self,
        lab_instance_id: int,
        *,
        grace_s: int | None = None,
        keep: str | None = None,
        object_label: str | None = None,
    ) -> list[Manifest]:
        """Start the deletion of a lab's objects, but of those called `keep`, and return them.

        What carries another object label than this is of an earlier lab of the same id, and stays.
        """
        found = [item for item in self.find(lab_instance_id) if item["metadata"]["name"] != keep]
        own = [item for item in found if not _is_anothers(item, object_label)]
        self._delete_all(own, grace_s)
        return own

    def delete_labs(self, labs: Collection[LabIdentity]) -> int:
        """Start the deletion of all objects of these labs, Pods at once; return how many they are.

        What has the id of a lab, and is labelled as another lab's or student's, may be another platform's.
        """
        by_id = {str(whose.lab_instance_id): whose for whose in labs}
        found = self.find(*(whose.lab_instance_id for whose in labs)) if labs else []
        ours = [item for item in found if naming.belongs_to(item, by_id[naming.lab_of(item) or ""])]
        self._delete_all(ours, 0)
        return len(ours)

    def wait_gone(self, objects: list[Manifest], *, timeout_s: float = GONE_TIMEOUT_S) -> None:
        """Wait until these objects are gone. Raises TransientError when they are not in time."""
        deadline = time.monotonic() + timeout_s
        for item in objects:
            try:
                for _ in self.states(item, deadline):
                    pass
            except LabGone:
                continue
            raise Failure.SLOW_STOP.error(evidence=f"still there: {item['kind']} {item['metadata']['name']}")

    def _ensure_one(
        self, lab_instance_id: int, manifest: Manifest, deadline: float, before_replacing: Callable[[], None]
    ) -> Manifest:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        while True:
            existing = self._get(kind, name)
            if existing is None:
                # Never applied: over what another create has just made that would change what it waits for.
                if created := self._create(kind, manifest):
                    logger.info("%s created", kind, extra={"action": "object_created", "object": name})
                    steps.reached(f"{kind} created")
                    return created
                if time.monotonic() > deadline:
                    raise Failure.CHANGED_MEANWHILE.error(evidence=f"{kind} {name} comes and goes")
                continue
            if not naming.belongs_to_lab(existing, lab_instance_id):
                raise Failure.NAME_TAKEN.error(
                    evidence=f"{kind} {name} is not managed by {naming.MANAGED_BY}"
                )
            if differs := _other_labels(existing, manifest):
                raise Failure.NAME_TAKEN.error(
                    evidence=f"{kind} {name} is of another lab with the same id, by {differs}"
                )
            if _same(existing, manifest) and state_of(existing) not in (State.GOING, State.LOST):
                logger.info("%s adopted", kind, extra={"action": "object_adopted", "object": name})
                return existing
            # Ours, but over, or of an attempt that rendered another template or asked for another tag.
            before_replacing()
            self._delete(existing, grace_s=0)
            self.wait_gone([existing], timeout_s=deadline - time.monotonic())

    def _create(self, kind: str, manifest: Manifest) -> Manifest | None:
        with _job_errors():
            return self._cluster.create(self._collections[kind], manifest)

    def _get(self, kind: str, name: str) -> Manifest | None:
        with _job_errors():
            item = self._cluster.get(f"{self._collections[kind]}/{name}")
        return item and {**item, "kind": kind}

    def _delete_all(self, items: list[Manifest], grace_s: int | None) -> None:
        """Start the deletion of all that can be deleted, then raise why the first other one cannot."""
        refused: list[PermanentError] = []
        for item in items:
            try:
                self._delete(item, grace_s=grace_s if item["kind"] == "Pod" else None)
            except PermanentError as exc:
                extra = {"action": "object_not_deleted", "object": item["metadata"]["name"]}
                logger.error("%s is not deleted: %s", item["kind"], exc.evidence, extra=extra)
                refused.append(exc)
        if refused:
            raise refused[0]

    def _delete(self, item: Manifest, *, grace_s: int | None) -> None:
        kind, name, uid = item["kind"], item["metadata"]["name"], item["metadata"]["uid"]
        with _job_errors():
            self._cluster.delete(f"{self._collections[kind]}/{name}", uid=uid, grace_s=grace_s)
        logger.info("%s deleted", kind, extra={"action": "object_deleted", "object": name})
        steps.reached(f"{kind} deleted")

    def states(self, item: Manifest, deadline: float) -> Iterator[Manifest]:
        """Yield an object as it is and each time it changes, until the monotonic deadline. Raises LabGone.

        A watch that breaks or expires is replaced by reading the object again.
        """
        kind, name, uid = item["kind"], item["metadata"]["name"], item["metadata"]["uid"]
        current: Manifest | None = item
        pause_s = 0.0
        while current and current["metadata"]["uid"] == uid:
            yield current
            timeout_s = deadline - time.monotonic()
            if timeout_s <= 0:
                return
            try:
                for event, seen in self._cluster.watch(
                    self._collections[kind],
                    resource_version=current["metadata"]["resourceVersion"],
                    timeout_s=timeout_s,
                    fieldSelector=f"metadata.name={name}",
                ):
                    if event == "DELETED" and seen["metadata"]["uid"] == uid:
                        raise LabGone
                    if event in ("ADDED", "MODIFIED") and seen["metadata"]["uid"] == uid:
                        yield seen
                    if time.monotonic() >= deadline:
                        break
            except (ApiError, ApiUnavailable) as exc:
                extra = {"action": "watch_broken", "object": name}
                logger.warning("watch broke, reading %s anew: %s", kind, exc, extra=extra)
            # One watch may well expire, as an old object's version does; more of them are no reason
            # to send hundreds of requests a second.
            time.sleep(min(pause_s, max(0.0, deadline - time.monotonic())))
            pause_s = _WATCH_PAUSE_S
            current = self._get(kind, name)
        raise LabGone


@contextmanager
def _job_errors() -> Iterator[None]:
    try:
        yield
    except (ApiError, ApiUnavailable) as exc:
        raise api_failure(exc) from exc


def _owned(manifest: Manifest, pod: Manifest) -> Manifest:
    """Return a manifest whose object goes when the Pod goes."""
    metadata = pod["metadata"]
    owner = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
    return {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [owner]}}


def _other_labels(existing: Manifest, manifest: Manifest) -> str:
    """Return by which labels an object is another lab's of the same id, or nothing."""
    has, wanted = existing["metadata"]["labels"], manifest["metadata"]["labels"]
    names = ("lab_id", "student_id", naming.OBJECT)
    return ", ".join(
        f"{name}={has[name]} instead of {wanted[name]}"
        for name in names
        if name in has and name in wanted and has[name] != wanted[name]
    )


def _is_anothers(item: Manifest, object_label: str | None) -> bool:
    anothers = naming.is_anothers(naming.object_label_of(item), object_label)
    if anothers:
        name = item["metadata"]["name"]
        extra = {"action": "anothers_object", "object": name}
        logger.warning("%s is left alone: of another lab with the same id", item["kind"], extra=extra)
    return anothers


def _same(existing: Manifest, manifest: Manifest) -> bool:
    def identity(item: Manifest) -> tuple[object, list[str]]:
        annotations = item["metadata"].get("annotations") or {}
        owners = item["metadata"].get("ownerReferences") or []
        return annotations.get(naming.SPEC_HASH), [owner["uid"] for owner in owners]

    return identity(existing) == identity(manifest)
