"""Thousands of histories of creates, deletes, duplicates, crashes and troubles, and what holds in each.

The handlers and PostgreSQL are real; broker and cluster are simulated in this process, so that containers
can meet, and die, at any point of each other's work. A byte of a history is one choice of what happens next.
TEST_HISTORIES=20000 lives that many others, at random.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

import jobs.create_lab
import jobs.failed_task
import jobs.lab_objects
import jobs.periodic.cleanup
import jobs.periodic.waiting_stops
import jobs.templates
from jobs import naming, steps
from jobs.configs import DEFAULTS
from jobs.consumer import Verdict
from jobs.lab_objects import LabObjects
from jobs.labs import Lab, LabStore, lab_result
from jobs.ledger import Ending
from jobs.life_settings import LifeSettings
from jobs.periodic.due import Reason
from tests.support import histories as histories_module
from tests.support.histories import Violation, World
from tests.support.history_bench import Bench
from tests.support.history_moves import come_to_rest, play
from tests.support.postgres import Server

HISTORIES = int(os.environ.get("TEST_HISTORIES", "2000"))
#: How many a flaw may take to be found.
BUDGET = 2000
CHOICES = st.binary(min_size=20, max_size=70)
#: Each must have occurred.
KINDS = [
    "create_lab_pod while create_lab_pod",
    "create_lab_pod while delete_lab_pod",
    "delete_lab_pod while create_lab_pod",
    "delete_lab_pod while delete_lab_pod",
    "create after the lab's end",
    "create_lab_pod loses at its commit",
    "a message is delivered again",
    "killed before the commit",
    "killed after the commit",
    "a container without its message goes on",
    "a container fails what the broker gave up",
    "a create replaces the Pod of another",
    "cancelled while it waits",
    "cancelled while it runs",
    "a lab is over its time",
    "a stop is asked for again",
    "a lab is extended",
    "an extension that is refused",
    "an extension while a cleanup is at it",
    "killed before it relays",
    "a Pod is removed by somebody",
    "a Pod is evicted",
    "the template changes",
    "poison",
    "API: away",
    "API: answer lost",
    "API: quota",
    "database: away",
    "database: answer lost",
    "publish: lost",
    "publish: confirm lost",
    "ended: succeeded",
    "ended: noop",
    "ended: retried",
    "ended: failed",
    "ended: dead_lettered",
    "ended: revoked",
]


@pytest.fixture(scope="module")
def bench(database_server: Server, migrated_template: str) -> Iterator[Bench]:
    database = database_server.create(template=migrated_template)
    # What a crash of the server would lose is not what this is about.
    database.rows(f'ALTER DATABASE "{database.name}" SET synchronous_commit TO off')
    templates = {
        path.relative_to(DEFAULTS).as_posix(): path.read_bytes() for path in DEFAULTS.rglob("*.yaml")
    }
    bench = Bench(database.url, templates)
    yield bench
    bench.close()
    database.drop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Answers of labs' Services are not what this is about, and thousands of log lines neither."""
    monkeypatch.setattr(jobs.create_lab, "wait_answers", lambda _host, _port: True)
    # Half the time of a history would go into reading the same templates.
    monkeypatch.setattr(jobs.templates, "_load", lru_cache(jobs.templates._load))
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def live(bench: Bench, choices: bytes, seen: Counter[str]) -> None:
    """Live one history. Raises Violation."""
    world = World(bench)
    seen["histories"] += 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "observers", [world.reached])
        patch.setattr(jobs.lab_objects, "time", world.clock)
        # The broker is simulated, and has no queue to count.
        patch.setattr(jobs.periodic.waiting_stops, "_deletes_wait", lambda _context: False)
        try:
            play(world, choices)
            come_to_rest(world)
            world.check_end()
        except Violation:
            note("\n".join(world.played))
            raise
        finally:
            for actor in [*world.actors]:
                actor.kill()
            seen.update(world.seen)


def live_many(bench: Bench, count: int, seen: Counter[str], *, shrink: bool) -> None:
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]

    @settings(
        max_examples=count,
        derandomize="TEST_HISTORIES" not in os.environ,
        phases=phases,
        suppress_health_check=[*HealthCheck],
        report_multiple_bugs=False,
    )
    @given(CHOICES)
    def one(choices: bytes) -> None:
        live(bench, choices, seen)

    one()


@pytest.mark.timeout(1200)
def test_every_history_ends_as_it_should(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    seen: Counter[str] = Counter()
    began = time.monotonic()
    live_many(bench, HISTORIES, seen, shrink=True)
    with capsys.disabled():
        print(f"\n{seen['histories']} histories, {seen['moves']} moves, {time.monotonic() - began:.0f} s")
        print("\n".join(f"{seen[kind]:>7} {kind}" for kind in KINDS))
    assert [kind for kind in KINDS if not seen[kind]] == []
    assert seen["histories"] >= HISTORIES


def running_whatever_happened(
    store: LabStore, record: Any, lab: int, *, pod_name: str, connection_url: str
) -> bool:
    """The flaw: mark_running without its conditions."""

    def change(cursor: Any) -> tuple[bool, Ending]:
        statement = "UPDATE lab_instances SET status = 'RUNNING', k8s_pod_name = %s WHERE id = %s"
        cursor.execute(statement, (pod_name, lab))
        return True, Ending("succeeded", result=lab_result(lab, Lab("RUNNING", False, pod_name, None)))

    return store._end(record, change)


def settled_unread(_connections: object, _delivery: object, _details: object) -> Verdict:
    return Verdict.SETTLED


def without_another_look(
    cursor: Any, _settings: LifeSettings, ids: list[int]
) -> list[tuple[int, str | None, datetime | None, Reason]]:
    """The flaw: a cleanup that ends what it found before, whatever happened meanwhile."""
    cursor.execute("SELECT id, k8s_pod_name FROM lab_instances WHERE id = ANY(%s) FOR UPDATE", (ids,))
    return [(lab, pod, None, Reason.EXPIRED) for lab, pod in cursor.fetchall()]


FLAWS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "RUNNING without compare-and-set": lambda patch: patch.setattr(
        LabStore, "mark_running", running_whatever_happened
    ),
    "no tombstone": lambda patch: patch.setattr(LabStore, "request_stop", LabStore.find),
    "a create replaces objects and takes nothing over": lambda patch: patch.setattr(
        LabStore, "take_over", lambda *_args, **_options: True
    ),
    "a create that lost takes nothing down": lambda patch: patch.setattr(
        jobs.create_lab, "_take_down_others", lambda *_args: None
    ),
    "not waiting for Ready": lambda patch: patch.setattr(
        LabObjects, "wait_ready", lambda *_args, **_options: None
    ),
    "a delete that deletes nothing": lambda patch: patch.setattr(
        LabObjects, "delete_lab", lambda *_args, **_options: []
    ),
    "a failure takes down what another started": lambda patch: patch.setattr(
        jobs.create_lab,
        "_take_down_others",
        lambda context, lab, _row: context.lab_objects.delete_lab(lab, grace_s=0),
    ),
    "labels of any lab": lambda patch: patch.setattr(
        naming, "lab_selector", lambda _lab: f"app.kubernetes.io/managed-by={naming.MANAGED_BY}"
    ),
    "a cleanup does not look again": lambda patch: patch.setattr(
        jobs.periodic.cleanup, "lock_due", without_another_look
    ),
    "acknowledged unread": lambda patch: patch.setattr(histories_module, "run_task", settled_unread),
    "a retry that is not published": lambda patch: patch.setattr(
        jobs.failed_task, "publish_delayed", lambda *_args: None
    ),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch, flaw: str) -> None:
    FLAWS[flaw](monkeypatch)
    seen: Counter[str] = Counter()
    with pytest.raises((Violation, RuntimeError)) as found:
        live_many(bench, BUDGET, seen, shrink=False)
    print(f"{flaw}: found in history {seen['histories']}: {found.value}")
