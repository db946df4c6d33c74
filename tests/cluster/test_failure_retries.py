"""Failures that pass, that stay, and rights that are taken away, one after the other in one namespace."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from dispatcher.broker import topology
from jobs.failures import Failure
from tests.support.clearing import clear
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.factories import create_kwargs
from tests.support.labs.own_labs import HANGS_S
from tests.support.waiting import eventually, eventually_equal

pytestmark = pytest.mark.timeout(3 * HANGS_S)
#: Seconds before the first retry; the next waits twice as long.
DELAY_S = 1
#: A ServiceAccount that nothing else of the platform needs.
ACCOUNT = "soon-gone"
QUOTA_SAYS = "is forbidden: exceeded quota: places, requested: pods=1, used: pods="


@pytest.fixture(autouse=True)
def nothing_is_left(own_platform: OwnPlatform) -> Iterator[None]:
    yield
    clear(own_platform)


@pytest.fixture
def full(own_platform: OwnPlatform) -> Iterator[OwnPlatform]:
    """A namespace in which all places are taken."""
    hard = {"spec": {"hard": {"pods": "0"}}, "metadata": {"name": "places"}}
    try:
        own_platform.namespace.kubectl(
            "create", "--filename=-", stdin={"apiVersion": "v1", "kind": "ResourceQuota", **hard}
        )
        # The API server refuses Pods before the quota's controller has counted, and says something else.
        eventually(
            lambda: _quota(own_platform).get("hard") == {"pods": "0"}, HANGS_S, what="the quota counts"
        )
        yield own_platform
    finally:
        own_platform.namespace.kubectl("delete", "resourcequota", "places", "--ignore-not-found")


def _quota(platform: OwnPlatform) -> dict[str, Any]:
    found = json.loads(platform.namespace.kubectl("get", "resourcequota", "places", "--output=json"))
    return dict(found.get("status", {}))


def _publish(platform: OwnPlatform) -> tuple[int, str]:
    lab = platform.database.add_lab()
    kwargs = create_kwargs(lab_instance_id=lab, docker_image=os.environ["LAB_IMAGE"])
    return lab, platform.broker.publish_task(kwargs=kwargs)


def _attempt(platform: OwnPlatform, *, max_retries: int, **environ: Any) -> None:
    """Run the next attempt, which may have to come down the ladder first."""
    eventually(lambda: platform.broker.depth(topology.QUEUE_NORMAL), HANGS_S, what="the next attempt")
    container = platform.containers.start(
        CELERY_TASK_MAX_RETRIES=max_retries,
        CELERY_TASK_RETRY_DELAY=DELAY_S,
        CELERY_TASK_RETRY_BACKOFF=2,
        **environ,
    )
    assert container.wait(HANGS_S) == 0


def _runs(platform: OwnPlatform, task_id: str) -> list[dict[str, Any]]:
    return platform.database.rows("SELECT * FROM task_ledger WHERE task_id = %s ORDER BY attempt", task_id)


def test_a_full_quota_is_waited_for_with_growing_delays(
    full: OwnPlatform, capsys: pytest.CaptureFixture[str]
) -> None:
    lab, task_id = _publish(full)
    for _ in range(3):
        _attempt(full, max_retries=5)
        assert full.database.lab(lab)["status"] == "PENDING"
    full.namespace.kubectl("delete", "resourcequota", "places")
    _attempt(full, max_retries=5)
    runs = _runs(full, task_id)
    assert [(run["attempt"], run["outcome"]) for run in runs] == [
        *[(attempt, "retried") for attempt in (1, 2, 3)],
        (4, "succeeded"),
    ]
    assert [run["details"]["retry_delay_s"] for run in runs[:3]] == [1, 2, 4]
    waited = [(b["claimed_at"] - a["finished_at"]).total_seconds() for a, b in pairwise(runs)]
    assert all(waited_s >= delay_s for waited_s, delay_s in zip(waited, (1, 2, 4), strict=True)), waited
    for run in runs[:3]:
        assert run["details"]["cause"] == Failure.QUOTA_EXCEEDED.cause
        assert run["error_category"] == "TEMPORARY_RESOURCE_ERROR"
        assert QUOTA_SAYS in run["details"]["evidence"]
        assert run["error_message"] == (
            "All places for labs are taken at the moment; it is tried again by itself."
        )
    assert full.database.lab(lab)["status"] == "RUNNING"
    assert full.database.rows("SELECT id FROM notifications WHERE lab_instance_id = %s", lab) == []
    with capsys.disabled():
        print(f"\na full quota: attempts {waited} s apart, then RUNNING")


def test_a_quota_that_stays_full_fails_the_lab_and_keeps_its_message(full: OwnPlatform) -> None:
    lab, task_id = _publish(full)
    for _ in range(2):
        _attempt(full, max_retries=1)
    assert [run["outcome"] for run in _runs(full, task_id)] == ["retried", "dead_lettered"]
    row = full.database.lab(lab)
    assert (row["status"], row["error_category"]) == ("FAILED", "TEMPORARY_RESOURCE_ERROR")
    assert row["error_message"] == (
        "All places for labs are taken at the moment. It was tried 2 times. Please start it again later;"
        " the administrator must look at it."
    )
    (notification,) = full.database.rows("SELECT * FROM notifications WHERE lab_instance_id = %s", lab)
    assert (notification["cause"], notification["told"]) == ("quota_exceeded", "admin")
    dead = full.broker.take(topology.DEAD_LETTER_QUEUE).headers
    assert dead["x-autolabs-task-id"] == task_id
    assert (dead["x-autolabs-cause"], dead["x-autolabs-attempts"]) == ("quota_exceeded", 2)
    assert dead["x-autolabs-first-error"].startswith("All places for labs are taken at the moment; it is")
    assert QUOTA_SAYS in dead["x-autolabs-first-error"]
    assert dead["x-autolabs-last-error"].startswith(row["error_message"])
    assert QUOTA_SAYS in dead["x-autolabs-last-error"]
    assert full.namespace.names_of(lab) == []
    assert full.broker.is_empty()
    assert full.broker.delayed() == 0


@pytest.fixture
def give_rights_back(own_platform: OwnPlatform) -> Iterator[Callable[[], None]]:
    """The job may do nothing in the namespace until this is called."""
    kubectl = own_platform.namespace.kubectl
    binding = json.loads(kubectl("get", "rolebinding", "celery-workers-binding", "--output=json"))
    kept = {key: value for key, value in binding.items() if key != "metadata"}
    fresh = {**kept, "metadata": {"name": "celery-workers-binding"}}

    def give_back() -> None:
        kubectl("apply", "--filename=-", stdin=fresh)
        eventually_equal(lambda: _may_see_pods(own_platform), True, HANGS_S)

    try:
        kubectl("delete", "rolebinding", "celery-workers-binding")
        # The API server goes by what it last heard of bindings, for a moment.
        eventually_equal(lambda: _may_see_pods(own_platform), False, HANGS_S)
        yield give_back
    finally:
        give_back()


def _may_see_pods(platform: OwnPlatform) -> bool:
    namespace = platform.namespace
    spec = {
        "user": f"system:serviceaccount:{namespace.name}:celery-workers-sa",
        "resourceAttributes": {"namespace": namespace.name, "verb": "get", "resource": "pods"},
    }
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
    said = namespace.kubectl("create", "--filename=-", "--output=json", stdin=review)
    return bool(json.loads(said)["status"]["allowed"])


def test_a_right_that_is_taken_away_is_the_administrators_to_give_back(
    own_platform: OwnPlatform, give_rights_back: Callable[[], None]
) -> None:
    lab, task_id = _publish(own_platform)
    _attempt(own_platform, max_retries=3)
    (run,) = _runs(own_platform, task_id)
    assert run["details"]["cause"] == Failure.CLUSTER_REFUSES_ACCESS.cause
    assert 'celery-workers-sa" cannot get resource "pods"' in run["details"]["evidence"]
    row = own_platform.database.lab(lab)
    assert (row["status"], row["error_category"]) == ("FAILED", "PERMANENT_PERMISSION_ERROR")
    # Nobody could look for its objects.
    assert own_platform.broker.take(topology.DEAD_LETTER_QUEUE).headers["x-autolabs-task-id"] == task_id
    give_rights_back()
    lab, _ = _publish(own_platform)
    _attempt(own_platform, max_retries=3)
    assert own_platform.database.lab(lab)["status"] == "RUNNING"


@pytest.fixture
def other_account(own_platform: OwnPlatform) -> Iterator[str]:
    """Where the kubeconfig of another account is, which may do what the job may."""
    namespace = own_platform.namespace
    try:
        namespace.kubectl("create", "serviceaccount", ACCOUNT)
        who = ("--role=celery-workers-role", f"--serviceaccount={namespace.name}:{ACCOUNT}")
        namespace.kubectl("create", "rolebinding", ACCOUNT, *who)
        key = f"kubeconfig/{ACCOUNT}.yaml"
        own_platform.bucket.put(key, namespace.kubeconfig_of(ACCOUNT))
        yield key
    finally:
        namespace.kubectl("delete", "serviceaccounts,rolebindings", ACCOUNT, "--ignore-not-found")


def test_a_token_whose_account_is_gone_is_no_access(own_platform: OwnPlatform, other_account: str) -> None:
    lab, _ = _publish(own_platform)
    _attempt(own_platform, max_retries=3, KUBECONFIG_OBJECT=other_account)
    assert own_platform.database.lab(lab)["status"] == "RUNNING"
    own_platform.namespace.kubectl("delete", "serviceaccount", ACCOUNT)

    def refused() -> bool:
        _, task_id = _publish(own_platform)
        _attempt(own_platform, max_retries=3, KUBECONFIG_OBJECT=other_account)
        (run,) = _runs(own_platform, task_id)
        return run["details"].get("cause") == Failure.CLUSTER_REFUSES_ACCESS.cause and (
            "401 Unauthorized" in run["details"]["evidence"]
        )

    # The API server believes a token for some seconds after it last checked it.
    eventually(refused, HANGS_S, what="401")
