"""What cannot be delivered now waits, untouched, and stops neither jobs nor the sweep."""

from __future__ import annotations

import json
import threading
import time

import pytest

import jobs.notify.notifications
from cronjobs.__main__ import main as cron
from dispatcher.broker import topology
from jobs.database.lab_store import LabStore
from jobs.notify.notifications import Notifier, deliver_one, sweep
from tests.support.containers.container import Containers
from tests.support.database.postgres import Database
from tests.support.factories import IMAGE, create_kwargs
from tests.support.http_server import Answer
from tests.support.labs.notifying import (
    PROBLEMS,
    Platform,
    publish_failing,
    webhook_environ,
)
from tests.support.waiting import HANG_S, ends_within
from tests.support.webhook import SECRET


def test_a_webhook_that_hangs_costs_its_seconds_and_then_no_more(
    platform: Platform,
    notifier: Notifier,
    labs: LabStore,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs.notify.notifications, "WEBHOOK_TIMEOUT_S", 0.5)
    for _ in range(6):
        platform.add_notification(database.add_lab())
    released = threading.Event()

    def hang(_request: object) -> Answer:
        released.wait(2 * HANG_S)
        return Answer(200, {})

    platform.webhook.answer = hang
    started = time.monotonic()
    with ends_within():
        assert sweep(labs, notifier, timeout_s=60) == (0, 6)
    assert time.monotonic() - started >= 3 * 0.5
    released.set()
    assert len(platform.webhook.calls) == 3
    rows = database.rows("SELECT * FROM notifications ORDER BY id")
    assert all(row["published_at"] for row in rows), "the broker's events do not wait for the webhook"
    assert not any(row["webhook_at"] for row in rows)
    assert [row["failures"] for row in rows] == [1] * 3 + [0] * 3, "what was not tried did not fail"
    assert rows[0]["last_error"] == "webhook: no answer within 0.5 s"
    assert rows[-1]["last_error"] == "webhook: it failed 3 times in a row"


def test_a_slow_deliverer_that_fails_takes_nothing_back(
    platform: Platform, notifier: Notifier, labs: LabStore, lab: int
) -> None:
    platform.add_notification(lab)
    platform.broker.channel().exchange_delete(topology.EVENTS_EXCHANGE)

    def answer_late(_request: object) -> Answer:
        # Its lease ran out, and another delivered meanwhile.
        platform.database.rows("UPDATE notifications SET published_at = now(), webhook_at = now()")
        return Answer(500, {})

    platform.webhook.answer = answer_late
    assert deliver_one(labs, notifier) is False
    assert platform.is_done()


@pytest.mark.parametrize(("secret", "failures"), [(SECRET, 1), ("bad", 0)])
def test_a_sweep_that_can_tell_nobody_has_swept_the_outbox_all_the_same(
    platform: Platform, lab: int, sweeper: pytest.MonkeyPatch, secret: str, failures: int
) -> None:
    platform.add_notification(lab)
    platform.webhook.answer = PROBLEMS["500"]
    sweeper.setenv("NOTIFY_WEBHOOK_SECRET", secret)
    kwargs = json.dumps(create_kwargs(lab_instance_id=lab, docker_image=IMAGE))
    platform.database.rows(
        "INSERT INTO task_outbox (task_name, kwargs) VALUES ('celery_workers.create_lab_pod', %s)", kwargs
    )
    assert cron(["outbox"]) == 0
    assert platform.broker.depth(topology.QUEUE_NORMAL) == 1
    assert platform.row()["failures"] == failures


@pytest.mark.parametrize(
    "wrong", [{"NOTIFY_WEBHOOK_URL": "http://ex ample/"}, {"NOTIFY_WEBHOOK_SECRET": "x"}]
)
def test_a_wrong_webhook_stops_no_job_and_its_notification_waits(
    platform: Platform,
    containers: Containers,
    bucket: object,
    lab: int,
    sweeper: pytest.MonkeyPatch,
    wrong: dict[str, str],
) -> None:
    publish_failing(platform.broker, lab)
    code, container = containers.run_here(**{**webhook_environ(platform.webhook), **wrong})
    assert code == 0
    assert platform.database.lab(lab)["status"] == "FAILED"
    (name,) = wrong
    log = container.log.read_text()
    assert f"the webhook is not called, notifications wait: {name}: " in log
    assert "ex ample" not in log
    row = platform.row()
    assert (row["published_at"] is not None, row["webhook_at"], row["failures"]) == (True, None, 0)
    assert row["last_error"].startswith(f"webhook: {name}: ")
    # Once the settings are right, it is told.
    platform.make_due()
    assert cron(["outbox"]) == 0
    assert platform.is_done()
    assert len(platform.webhook.calls) == 1
