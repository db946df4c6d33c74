"""How far a change has come, as the status of a Pod says it; texts are those of a kubelet 1.34."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.cluster.pod_resources import Progress, Resources, before_change, in_force, lab_container, look
from jobs.config.lab_settings import LabSettings
from jobs.handlers.resize import wanted_resources

OLD = {"limits": {"cpu": "500m", "memory": "512Mi"}, "requests": {"cpu": "25m", "memory": "134217728"}}
NEW = {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "50m", "memory": "268435456"}}


def make_pod(
    *, asked: Any = NEW, has: Any = NEW, conditions: Any = (), generation: int = 2, observed: int | None = 2
) -> dict[str, Any]:
    status = (
        {"name": "lab", "resources": has, "allocatedResources": has["requests"]} if has else {"name": "lab"}
    )
    return {
        "metadata": {"name": "lab-instance-7-demo", "generation": generation},
        "spec": {"containers": [{"name": "lab", "image": "r/demo:1", "resources": asked}]},
        "status": {
            "conditions": [{"status": "True", **condition} for condition in conditions],
            "containerStatuses": [status],
        }
        | ({} if observed is None else {"observedGeneration": observed}),
    }


def condition(kind: str, reason: str = "", message: str = "", observed: int = 2) -> dict[str, Any]:
    return {"type": kind, "reason": reason, "message": message, "observedGeneration": observed}


BELOW = "attempting to set pod memory limit (67108864) below current usage (211812352)"


@pytest.mark.parametrize(
    ("pod", "progress"),
    [
        (make_pod(), Progress.DONE),
        (make_pod(has=NEW | {"limits": {"cpu": "1000m", "memory": "1024Mi"}}), Progress.DONE),
        (make_pod(observed=None), Progress.DONE),
        (make_pod(has=OLD), Progress.UNDER_WAY),
        (make_pod(has=None), Progress.UNDER_WAY),
        (make_pod(observed=1), Progress.UNDER_WAY),
        (make_pod(has=OLD | {"requests": NEW["requests"]}), Progress.UNDER_WAY),
        (make_pod(conditions=[condition("PodResizeInProgress")]), Progress.UNDER_WAY),
        (make_pod(has=OLD, conditions=[condition("PodResizePending", "Deferred")]), Progress.DEFERRED),
        (make_pod(has=OLD, conditions=[condition("PodResizePending", "Infeasible")]), Progress.INFEASIBLE),
        (
            make_pod(has=OLD, conditions=[condition("PodResizePending", "Infeasible", observed=1)]),
            Progress.UNDER_WAY,
        ),
        (make_pod(conditions=[condition("PodResizePending", "Infeasible", observed=1)]), Progress.DONE),
        (
            make_pod(has=OLD, conditions=[condition("PodResizeInProgress", "Error", BELOW)]),
            Progress.BELOW_USE,
        ),
        (make_pod(has=OLD, conditions=[condition("PodResizeInProgress", "Error", "x")]), Progress.FAILING),
        (
            make_pod(conditions=[{**condition("PodResizePending", "Deferred"), "status": "False"}]),
            Progress.DONE,
        ),
        (make_pod(conditions=[condition("Ready")]), Progress.DONE),
    ],
)
def test_how_far_a_change_has_come(pod: dict[str, Any], progress: Progress) -> None:
    assert look(pod, "lab").progress is progress


def test_what_was_before_is_what_is_in_force_or_else_what_was_asked_for() -> None:
    assert before_change(make_pod(has=OLD), "lab") == Resources(**OLD)
    assert before_change(make_pod(has=None), "lab") == Resources(**NEW)
    assert in_force(make_pod(has=None), "lab") == Resources({}, {})


def test_storage_is_left_alone() -> None:
    with_storage = {part: values | {"ephemeral-storage": "1Gi"} for part, values in OLD.items()}
    assert Resources.read(with_storage) == Resources(**OLD)


def test_the_container_of_the_lab_is_the_one_with_its_image() -> None:
    pod = make_pod()
    pod["spec"]["containers"].insert(0, {"name": "sidecar", "image": "r/proxy:1"})
    assert lab_container(pod, 7) == "lab"
    pod["metadata"]["name"] = "lab-instance-7-other"
    assert lab_container(pod, 7) == "sidecar"


SETTINGS = LabSettings(allowed_images=["*"])


def test_what_is_reserved_is_the_same_share_as_at_a_create() -> None:
    wanted = wanted_resources(Resources(**OLD), NEW["limits"], SETTINGS, "Burstable")
    assert wanted == Resources(**NEW)


def test_what_is_not_asked_for_stays() -> None:
    wanted = wanted_resources(Resources(**OLD), {"cpu": "1"}, SETTINGS, "Burstable")
    assert wanted == Resources(OLD["limits"] | {"cpu": "1"}, OLD["requests"] | {"cpu": "50m"})


def test_the_qos_class_stays_whatever_the_shares_are_by_now() -> None:
    whole = LabSettings(allowed_images=["*"], cpu_request_ratio=1, memory_request_ratio=1)
    burstable = wanted_resources(Resources(**OLD), NEW["limits"], whole, "Burstable")
    assert burstable.requests == {"cpu": "999m", "memory": str(2**30)}
    guaranteed = Resources(OLD["limits"], OLD["limits"])
    assert wanted_resources(guaranteed, {"cpu": "1"}, SETTINGS, "Guaranteed").requests == {
        "cpu": "1",
        "memory": "512Mi",
    }
