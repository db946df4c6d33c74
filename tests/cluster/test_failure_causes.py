"""Every way to fail, for real: what the row, the ledger, the dead letters and the cluster have afterwards.

The cases are played several at a time, and each test looks at its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from dispatcher.failure_contract import Audience, Category
from jobs.failures import Failure
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.cluster.registry import Registries
from tests.support.labs.failing import AWAY_S, Case, Seen, Stage
from tests.support.labs.failing_labs import LABS, MOST_CPU, MOST_MEMORY
from tests.support.labs.failing_tasks import TASKS
from tests.support.labs.own_labs import HANGS_S

#: Some cases have 20 s to start.
pytestmark = pytest.mark.usefixtures("node_room")
CASES = LABS | TASKS
#: Tasks that fail at the same time.
TOGETHER = 5
#: What the kubelet's first report is believed of -> how often it has asked a registry by then. It asks again
#: after 10 s, and later and later.
PULLS = {Failure.IMAGE_NOT_LOADABLE: 1, Failure.IMAGE_NAME_INVALID: 0, Failure.IMAGE_NOT_ON_SERVER: 0}


def _make_room(platform: OwnPlatform) -> None:
    """Let no quota and no Pod Security come before what a case is about."""
    name = platform.namespace.name
    platform.namespace.kubectl(
        "label", "--overwrite", f"namespace/{name}", "pod-security.kubernetes.io/enforce=baseline"
    )
    most = {"cpu": MOST_CPU, "memory": MOST_MEMORY}
    limits = [{"type": "Container", "default": {"cpu": "500m", "memory": "512Mi"}, "max": most}]
    for kind, spec in (
        ("limitrange", {"limits": limits}),
        ("resourcequota", {"hard": {"requests.cpu": "9k", "limits.cpu": "9k"}}),
    ):
        platform.namespace.kubectl("patch", kind, "labs", f"--patch={json.dumps({'spec': spec})}")


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest, own_platform: OwnPlatform) -> Iterator[dict[str, Future[Seen]]]:
    """What each case that is asked for left; begun all together."""
    names = [
        item.callspec.params["name"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path and hasattr(item, "callspec")
    ]
    _make_room(own_platform)
    with Registries() as registries, ThreadPoolExecutor(TOGETHER) as pool:
        stage = Stage(own_platform, registries)
        yield {name: pool.submit(stage.play, CASES[name]) for name in CASES if name in names}
        pool.shutdown(cancel_futures=True)


# The first that asks may wait for the last that is played.
@pytest.mark.timeout(5 * HANGS_S)
@pytest.mark.parametrize("name", CASES)
def test_a_failure_is_told_as_its_row_says(
    played: dict[str, Future[Seen]], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case, seen = CASES[name], played[name].result()
    print(f"{name}: {case.failure.cause}, {seen.end}")  # for the report of a failure
    assert seen.exit_code == 0
    assert seen.end["cause"] == case.failure.cause
    assert seen.end["error_category"] == case.failure.category
    if case.recorded:
        _check_ledger(case, seen)
        _check_lab(case, seen)
    if case.failure.retry:
        assert seen.dead_letter is None
    else:
        assert seen.objects == []
        _check_dead_letter(case, seen)
    if case.failure.category is Category.PERMANENT_IMAGE_ERROR:
        assert seen.pulls == PULLS.get(case.failure, seen.pulls)
        with capsys.disabled():
            print(f"\n{name}: FAILED {seen.took_s:.1f} s after the claim, pulls: {seen.pulls}")


def _check_ledger(case: Case, seen: Seen) -> None:
    run = seen.run
    assert run is not None
    assert run["outcome"] == (case.outcome or ("retried" if case.failure.retry else "failed"))
    assert run["details"]["cause"] == case.failure.cause
    assert run["error_category"] == (None if case.failure is Failure.CANCELLED else case.failure.category)
    assert case.says in run["details"].get("evidence", "")
    assert run["error_message"] == case.sentence(seen.scene)
    assert run["details"].get("retry_delay_s") == (AWAY_S if case.failure.retry else None)


def _check_lab(case: Case, seen: Seen) -> None:
    assert seen.lab["status"] == (case.status or ("PENDING" if case.failure.retry else "FAILED"))
    failed = seen.lab["status"] == "FAILED"
    assert [(row["cause"], row["told"], row["message"]) for row in seen.told] == [
        (case.failure.cause, case.failure.audience, case.sentence(seen.scene))
    ] * ((failed or case.stop_failed) and case.failure.audience is not Audience.NOBODY)
    if failed:
        assert seen.lab["error_category"] == case.failure.category
        assert seen.lab["error_message"] == case.sentence(seen.scene)
        assert "{" not in seen.lab["error_message"]
    if case.failure.category is Category.PERMANENT_IMAGE_ERROR:
        assert f'"{seen.scene.image}"' in seen.lab["error_message"]


def _check_dead_letter(case: Case, seen: Seen) -> None:
    assert (seen.dead_letter is not None) == case.kept
    if seen.dead_letter and "x-autolabs-cause" in seen.dead_letter:
        assert seen.dead_letter["x-autolabs-cause"] == case.failure.cause
        assert seen.dead_letter["x-autolabs-category"] == case.failure.category
        assert case.sentence(seen.scene) in seen.dead_letter["x-autolabs-reason"]
        assert case.says in seen.dead_letter["x-autolabs-reason"]
