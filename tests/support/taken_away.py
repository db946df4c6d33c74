"""Labs of a finished test are taken away by hand and all at once; each stop would start a container."""

from __future__ import annotations

import json
from collections.abc import Collection

from deploy.demo.platform import LABS, Platform, eventually
from tests.support.own_namespace import kubectl

KINDS = "pods,services,networkpolicies"
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
        kubectl("delete", KINDS, "--now", "--namespace", LABS, _selector(running))
    statuses = {int(row["id"]): row["status"] for row in platform.query(_STATUSES, list(labs))}
    left = _with_objects(labs)
    for lab, status in statuses.items():
        if status == "PENDING" or (status == "FAILED" and lab in left):
            platform.dispatcher.delete_lab(lab_instance_id=lab, force=True)
            statuses[lab] = "stops"
    for lab, status in statuses.items():
        if status == "stops":
            platform.wait_for_status(lab, "STOPPED", timeout_s=GONE_S)
    eventually(lambda: not _with_objects(labs), timeout_s=GONE_S, what=f"objects of {labs} gone")


def _with_objects(labs: Collection[int]) -> set[int]:
    """Return those of the labs that have something in the cluster."""
    listed = json.loads(kubectl("get", KINDS, "--namespace", LABS, _selector(labs), "--output=json"))
    return {int(item["metadata"]["labels"]["lab_instance_id"]) for item in listed["items"]}


def _selector(labs: Collection[int]) -> str:
    return f"--selector=lab_instance_id in ({','.join(map(str, labs))})"
