"""What the histories can find: each flaw that is planted in the handlers shows in one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import jobs.checks.cleanup
import jobs.container.settle
import jobs.handlers.give_up
from jobs.cluster.lab_objects import LabObjects
from jobs.config import naming
from jobs.config.lifetimes import LifeSettings
from jobs.container.consumer import Settlement
from jobs.database.due_rows import DueLab, Reason
from jobs.database.lab_rows import LabState
from jobs.database.lab_store import LabStore, lab_result
from jobs.database.ledger import Ending
from tests.support.histories import actors
from tests.support.histories.actors import Violation
from tests.support.histories.bench import Bench
from tests.support.histories.search import bench, live_many, quick  # noqa: F401  # two are fixtures

#: How many a flaw may take to be found.
BUDGET = 2000


def running_whatever_happened(
    store: LabStore, record: Any, lab: int, *, pod_name: str, connection_url: str
) -> bool:
    """The flaw: mark_running without its conditions."""

    def change(cursor: Any) -> tuple[bool, Ending]:
        statement = "UPDATE lab_instances SET status = 'RUNNING', k8s_pod_name = %s WHERE id = %s"
        cursor.execute(statement, (pod_name, lab))
        running = LabState("RUNNING", False, pod_name, None, None, 1, False, 1)
        return True, Ending("succeeded", result=lab_result(lab, running))

    return store._end(record, change)


def settled_unread(_connections: object, _delivery: object, _details: object) -> Settlement:
    return Settlement.ACK


def without_another_look(cursor: Any, _settings: LifeSettings, ids: list[int]) -> list[DueLab]:
    """The flaw: a cleanup that ends what it found before, whatever happened meanwhile."""
    cursor.execute("SELECT id, k8s_pod_name FROM lab_instances WHERE id = ANY(%s) FOR UPDATE", (ids,))
    return [DueLab(lab, pod, None, Reason.EXPIRED) for lab, pod in cursor.fetchall()]


FLAWS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "RUNNING without compare-and-set": lambda patch: patch.setattr(
        LabStore, "mark_running", running_whatever_happened
    ),
    "no tombstone": lambda patch: patch.setattr(
        LabStore, "request_stop", lambda store, lab, **_options: store.find(lab)
    ),
    "a create replaces objects and takes nothing over": lambda patch: patch.setattr(
        LabStore, "take_over", lambda *_args, **_options: True
    ),
    "a create that lost takes nothing down": lambda patch: patch.setattr(
        jobs.handlers.give_up, "take_down", lambda *_args: None
    ),
    "not waiting for Ready": lambda patch: patch.setattr(
        LabObjects, "wait_ready", lambda *_args, **_options: None
    ),
    "a delete that deletes nothing": lambda patch: patch.setattr(
        LabObjects, "delete_lab", lambda *_args, **_options: []
    ),
    "a failure takes down what another started": lambda patch: patch.setattr(
        jobs.handlers.give_up,
        "take_down",
        lambda context, lab, _row: context.lab_objects.delete_lab(lab, grace_s=0),
    ),
    "labels of any lab": lambda patch: patch.setattr(
        naming, "lab_selector", lambda _lab: f"app.kubernetes.io/managed-by={naming.MANAGED_BY}"
    ),
    "a cleanup does not look again": lambda patch: patch.setattr(
        jobs.checks.cleanup, "lock_due", without_another_look
    ),
    "acknowledged unread": lambda patch: patch.setattr(actors, "run_task", settled_unread),
    "a retry that is not published": lambda patch: patch.setattr(
        jobs.container.settle, "publish_delayed", lambda *_args: None
    ),
}


# Seconds; a flaw that no history shows takes them all.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_is_found(
    bench: Bench,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    flaw: str,
) -> None:
    FLAWS[flaw](monkeypatch)
    seen: Counter[str] = Counter()
    with pytest.raises((Violation, RuntimeError)) as found:
        live_many(bench, BUDGET, seen, shrink=False)
    print(f"{flaw}: found in history {seen['histories']}: {found.value}")
