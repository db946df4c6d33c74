"""List the objects of ours in the cluster: one labelled LIST per kind, in pages, of which little is kept."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import jobs.cluster.client
from dispatcher.ids import read_id
from jobs.cluster.client import ApiError, ApiUnavailable, Cluster, Manifest, api_time
from jobs.cluster.lab_objects import collections
from jobs.cluster.pod_fields import condition
from jobs.cluster.pod_status import listed_status
from jobs.config.naming import MANAGED_BY, OBJECT
from jobs.verify.inventory import LabObject
from jobs.waiting import through_blips

#: Objects per page: a page of Pods is parsed to about 10 MiB.
PAGE = 250
_FORBIDDEN, _NOT_FOUND = 403, 404
#: Bytes read of an answer whose content does not matter, and seconds to wait for it.
_READ_BYTES, _ANSWER_S = 20_000, 15.0


def lab_objects(cluster: Cluster, namespace: str) -> Iterator[LabObject]:
    """Yield what is ours in the namespace; an object may come twice. Raises ApiError, ApiUnavailable."""
    for kind, path in collections(namespace).items():
        for page in our_pages(cluster, path):
            yield from (make_object(kind, item) for item in page)


def our_pages(cluster: Cluster, path: str) -> Iterator[list[Manifest]]:
    """Yield what is ours of one kind, page by page. Raises ApiError, ApiUnavailable."""
    return cluster.list_pages(path, limit=PAGE, labelSelector=f"app.kubernetes.io/managed-by={MANAGED_BY}")


def is_governed(cluster: Cluster, namespace: str) -> bool:
    """Tell whether the namespace is under a policy, as that of labs is. Raises ApiError, ApiUnavailable."""
    return bool(cluster.list_items(collections(namespace)["NetworkPolicy"], limit="1")[0])


def namespace_exists(cluster: Cluster, namespace: str) -> bool:
    """Tell whether there is such a namespace; who may not know could list there by a Role in it.

    A refusal is believed at once, other than by `cluster.get`: who has just listed there is known. Raises
    ApiError, ApiUnavailable.
    """
    path = f"/api/v1/namespaces/{namespace}"

    def asked() -> bool:
        try:
            cluster.read_text(path, limit=_READ_BYTES, timeout_s=_ANSWER_S)
        except ApiError as exc:
            if exc.status in (_FORBIDDEN, _NOT_FOUND):
                return exc.status == _FORBIDDEN
            raise
        return True

    return through_blips(asked, on=(ApiUnavailable,), within_s=jobs.cluster.client.BLIP_S, what=f"GET {path}")


def make_object(kind: str, item: Manifest) -> LabObject:
    metadata = item["metadata"]
    labels = metadata.get("labels") or {}
    return LabObject(
        kind=kind,
        name=metadata["name"],
        uid=metadata["uid"],
        lab=_lab(labels.get("lab_instance_id")),
        lab_id=labels.get("lab_id"),
        student_id=labels.get("student_id"),
        created_at=datetime.fromisoformat(metadata["creationTimestamp"]),
        deleted_by=api_time(metadata.get("deletionTimestamp")),
        owner_uids=tuple(owner["uid"] for owner in metadata.get("ownerReferences") or ()),
        status=listed_status(item),
        ready_since=api_time(condition(item, "Ready").get("lastTransitionTime")),
        object_label=labels.get(OBJECT),
        address=(item.get("spec") or {}).get("clusterIP"),
    )


def _lab(label: str | None) -> int | None:
    # Exactly as naming.lab_labels writes it: "007" is nobody's.
    return read_id(label) if label is not None else None
