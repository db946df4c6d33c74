"""Labs of a finished test are taken away by hand and all at once; each stop would start a container."""

from __future__ import annotations

from collections.abc import Collection

from deploy.demo.platform import LABS, Platform, eventually

#: Seconds that only end a hang.
GONE_S = 120
# The tombstone too: no create that is still on its way may bring the lab back.
_STOP = (
    "UPDATE lab_instances SET status = 'STOPPED', stop_requested_at = now(), stopped_at = now(),"
    " updated_at = now() WHERE id = ANY(%s) AND status = 'RUNNING' RETURNING id"
)
_STATUSES = "SELECT id, status FROM lab_instances WHERE id = ANY(%s)"


def take_away(platform: Platform, labs: Collection[int]) -> None:
    """Return when nothing of these labs is left, and nobody will make it anew.

    A lab that a failed test left in the middle of its start is stopped as a student stops it: what a
    container has begun, and what lies in a queue, ends by that.
    """
    if not labs:
        return
    if running := {int(row["id"]) for row in platform.query(_STOP, list(labs))}:
        # What else a lab has is owned by its Pod.
        platform.core.delete_collection_namespaced_pod(
            LABS, label_selector=_selector(running), grace_period_seconds=1
        )
    left = _with_objects(platform, labs)
    unclear = [
        int(row["id"])
        for row in platform.query(_STATUSES, list(labs))
        if row["status"] == "PENDING" or (row["status"] == "FAILED" and row["id"] in left)
    ]
    for lab in unclear:
        platform.dispatcher.delete_lab(lab_instance_id=lab, force=True)
    for lab in unclear:
        platform.wait_for_status(lab, "STOPPED", timeout_s=GONE_S)
    eventually(lambda: not _with_objects(platform, labs), timeout_s=GONE_S, what=f"objects of {labs} gone")


def _with_objects(platform: Platform, labs: Collection[int]) -> set[int]:
    """Return those of the labs that have something in the cluster."""
    selector = _selector(labs)
    lists = (
        platform.core.list_namespaced_pod(LABS, label_selector=selector),
        platform.core.list_namespaced_service(LABS, label_selector=selector),
        platform.networking.list_namespaced_network_policy(LABS, label_selector=selector),
    )
    return {int(item.metadata.labels["lab_instance_id"]) for found in lists for item in found.items}


def _selector(labs: Collection[int]) -> str:
    return f"lab_instance_id in ({','.join(map(str, labs))})"
