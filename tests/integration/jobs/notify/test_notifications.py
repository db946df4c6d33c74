"""Who is told of a failed lab, once; what a container could not deliver, the sweep does."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest

from cronjobs.__main__ import main as cron
from dispatcher.broker import topology
from dispatcher.broker.publisher import Publisher
from jobs.config.environment import WebhookSettings
from jobs.container.run_task import run_task
from jobs.database.lab_store import LabStore
from jobs.database.notifications import waiting
from jobs.handlers.context import Connections
from jobs.notify.notifications import Notifier, deliver_one, sweep
from tests.support.cluster.fake_cluster import FakeCluster
from tests.support.containers.container import Containers
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_task
from tests.support.http_server import Answer
from tests.support.labs.creates import CRASHED, delivery_of, settle
from tests.support.labs.notifying import (
    EVENTS,
    NOT_ALLOWED,
    PROBLEMS,
    Platform,
    make_notifier,
    publish_failing,
    webhook_environ,
)
from tests.support.waiting import HANG_S
from tests.support.webhook import SECRET


def test_a_container_tells_after_the_acknowledgement(
    platform: Platform, containers: Containers, bucket: object, lab: int
) -> None:
    platform.bind_events("lab.failed.teacher")
    task_id = publish_failing(platform.broker, lab)
    code, container = containers.run_here(**webhook_environ(platform.webhook))
    assert code == 0
    event = platform.broker.take(EVENTS)
    body = json.loads(event.body)
    occurred_at = body.pop("occurred_at")
    assert body == {
        "id": f"lab-failed-{lab}-image_not_allowed",
        "type": "lab.failed",
        "lab_instance_id": lab,
        "lab_id": 7,
        "student_id": 42,
        "cause": "image_not_allowed",
        "category": "PERMANENT_IMAGE_ERROR",
        "told": "teacher",
        "message": platform.database.lab(lab)["error_message"],
        "task_id": task_id,
    }
    assert event.routing_key == "lab.failed.teacher"
    assert (event.properties.delivery_mode, event.properties.content_type) == (2, "application/json")
    assert platform.webhook.bodies() == [{**body, "occurred_at": occurred_at}]
    assert platform.webhook.calls[0].headers["webhook-id"] == body["id"]
    assert platform.is_done()
    assert (platform.row()["failures"], platform.row()["last_error"]) == (0, None)
    assert "notified" in container.actions()
    assert not {part for part in ("hidden-in-url", SECRET) if part in container.log.read_text()}


def test_nobody_bound_and_no_webhook_is_delivered_too(
    platform: Platform, containers: Containers, bucket: object, lab: int
) -> None:
    publish_failing(platform.broker, lab)
    assert containers.run_here()[0] == 0
    assert platform.is_done()
    assert platform.webhook.calls == []


@pytest.mark.parametrize("step", ["settling", "acknowledged"])
def test_the_sweep_tells_what_a_killed_container_could_not(
    platform: Platform,
    containers: Containers,
    bucket: object,
    lab: int,
    sweeper: pytest.MonkeyPatch,
    step: str,
) -> None:
    platform.bind_events()
    publish_failing(platform.broker, lab)
    environ = webhook_environ(platform.webhook)
    killed = containers.run(
        module="tests.support.containers.faulty_job", TEST_FAULT=f"kill:{step}", **environ
    )
    assert killed[0] == -9
    assert platform.database.lab(lab)["status"] == "FAILED"
    assert platform.webhook.calls == [], "never before the acknowledgement"
    assert cron(["outbox"]) == 0
    assert cron(["outbox"]) == 0
    assert len(platform.webhook.bodies()) == 1
    assert platform.broker.depth(EVENTS) == 1
    assert platform.is_done()
    # What was not acknowledged comes again, and tells nobody twice.
    assert containers.run_here(CLAIM_WAIT_S=1, **environ)[0] == 0
    assert (len(platform.webhook.calls), platform.broker.depth(EVENTS)) == (1, 1)


def test_duplicates_of_the_task_tell_once(
    platform: Platform, connections: Connections, cluster: FakeCluster, lab: int
) -> None:
    cluster.pod_status = CRASHED
    for _ in range(3):
        task = make_task(kwargs=create_kwargs(lab_instance_id=lab))
        settle(connections, task)
    assert platform.row()["cause"] == "program_ends"
    assert connections.notifications == [platform.row()["id"]]


@pytest.mark.parametrize("how", ["expired", "running", "stopped"])
def test_nobody_is_told_of_what_nobody_has_to_mend(
    platform: Platform, connections: Connections, lab: int, how: str
) -> None:
    changes: dict[str, Any] = {"kwargs": create_kwargs(lab_instance_id=lab, **NOT_ALLOWED)}
    if how == "expired":
        task = make_task(**changes, expires=datetime(2026, 1, 1, tzinfo=timezone.utc))
    else:
        task = make_task(**changes)
        column = "status = 'RUNNING'" if how == "running" else "stop_requested_at = now()"
        platform.database.rows(f"UPDATE lab_instances SET {column}")
    run_task(connections, delivery_of(task), {})
    assert platform.database.rows("SELECT * FROM notifications") == []


def test_the_event_in_the_cluster_is_posted_once_before_the_objects_go(
    platform: Platform, connections: Connections, cluster: FakeCluster, lab: int
) -> None:
    cluster.pod_status = CRASHED
    there: list[int] = []
    cluster.on_delete = lambda _path: there.append(len(cluster.events))
    task = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    run_task(connections, delivery_of(task), {})
    assert there[0] == 1
    (event,) = cluster.events
    name = f"lab-instance-{lab}-demo"
    assert event["metadata"] == {"namespace": "labs", "name": f"{name}.program-ends"}
    assert event["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "labs",
        "name": name,
        "uid": f"uid-/api/v1/namespaces/labs/pods/{name}",
    }
    assert (event["reason"], event["type"]) == ("LabProgramEnds", "Warning")
    assert event["message"] == platform.database.lab(lab)["error_message"]


def test_a_lab_without_a_pod_has_its_event_by_the_name_the_pod_would_have(
    platform: Platform, connections: Connections, cluster: FakeCluster, lab: int
) -> None:
    task = make_task(kwargs=create_kwargs(lab_instance_id=lab, **NOT_ALLOWED))
    run_task(connections, delivery_of(task), {})
    (event,) = cluster.events
    assert event["involvedObject"]["name"] == f"lab-instance-{lab}-other"
    assert "uid" not in event["involvedObject"]
    assert event["reason"] == "LabImageNotAllowed"


@pytest.mark.parametrize("problem", ["500", "redirect"])
def test_what_the_webhook_refuses_waits_and_the_event_is_not_published_again(
    platform: Platform, notifier: Notifier, labs: LabStore, lab: int, problem: str
) -> None:
    platform.bind_events()
    platform.add_notification(lab)
    platform.webhook.answer = PROBLEMS[problem]
    assert deliver_one(labs, notifier) is False
    row = platform.row()
    assert (row["published_at"] is not None, row["webhook_at"], row["failures"]) == (True, None, 1)
    assert row["last_error"].startswith("webhook: 127.0.0.1 answered ")
    assert "hunter2" not in row["last_error"]
    assert deliver_one(labs, notifier) is None, "it is not due yet"
    platform.webhook.answer = lambda _request: Answer(200, {})
    platform.make_due()
    assert deliver_one(labs, notifier) is True
    assert platform.broker.depth(EVENTS) == 1
    first, second = platform.webhook.bodies()
    assert first == second
    assert platform.row()["last_error"] is None


def test_nobody_at_the_webhook_is_said_without_its_url(
    platform: Platform, publisher: Publisher, labs: LabStore, lab: int
) -> None:
    platform.add_notification(lab)
    webhook = WebhookSettings("http://user:hunter2@127.0.0.1:9/hunter2?x=hunter2", (b"x" * 24,))
    assert deliver_one(labs, Notifier(publisher, webhook)) is False
    error = platform.row()["last_error"]
    assert error.startswith("webhook: 127.0.0.1 cannot be reached")
    assert "hunter2" not in error


def test_a_password_in_the_url_is_sent_as_such(
    platform: Platform, publisher: Publisher, labs: LabStore, lab: int
) -> None:
    platform.add_notification(lab)
    url = platform.webhook.url.replace("http://", "http://user:pass@")
    assert deliver_one(labs, Notifier(publisher, WebhookSettings(url, (b"x" * 24,)))) is True
    (call,) = platform.webhook.calls
    assert call.headers["authorization"] == "Basic dXNlcjpwYXNz"


def test_a_receiver_may_change_its_secret(
    platform: Platform, publisher: Publisher, labs: LabStore, lab: int
) -> None:
    platform.add_notification(lab)
    secrets = (b"another secret of 24 byte", b"secret of the tests, 32 bytes ok")
    assert deliver_one(labs, Notifier(publisher, WebhookSettings(platform.webhook.url, secrets))) is True
    assert len(platform.webhook.bodies()) == 1


def test_a_broker_that_is_away_leaves_the_event_and_not_the_webhook(
    platform: Platform, publisher: Publisher, labs: LabStore, lab: int
) -> None:
    platform.add_notification(lab)
    platform.broker.channel().exchange_delete(topology.EVENTS_EXCHANGE)
    webhook = WebhookSettings(platform.webhook.url, (b"secret of the tests, 32 bytes ok",))
    assert deliver_one(labs, Notifier(publisher, webhook)) is False
    row = platform.row()
    assert (row["published_at"], row["webhook_at"] is not None) == (None, True)
    assert row["last_error"].startswith("broker: ")
    platform.broker.declare()
    platform.make_due()
    assert deliver_one(labs, Notifier(publisher, webhook)) is True
    assert len(platform.webhook.calls) == 1


def test_it_is_tried_ever_less_often_and_for_a_day(
    platform: Platform, publisher: Publisher, labs: LabStore, lab: int, caplog: pytest.LogCaptureFixture
) -> None:
    def sweep_once() -> tuple[int, int]:
        return sweep(labs, make_notifier(publisher, platform.webhook), timeout_s=HANG_S)

    platform.add_notification(lab)
    platform.webhook.answer = PROBLEMS["500"]
    waits = []
    for _ in range(3):
        platform.make_due()
        assert sweep_once() == (0, 1)
        left = platform.database.rows("SELECT next_attempt_at - now() AS left FROM notifications")
        waits.append(left[0]["left"].total_seconds())
    assert 9 < waits[0] <= 20 < waits[1] + 1 <= 41
    assert 39 < waits[2] <= 80
    platform.make_due()
    platform.database.rows("UPDATE notifications SET created_at = now() - interval '1 day'")
    assert sweep_once() == (0, 1)
    assert platform.row()["next_attempt_at"].year == 9999
    assert waiting(labs) == []
    assert caplog.records[-1].levelname == "ERROR"
    assert getattr(caplog.records[-1], "action", "") == "notification_given_up"


def test_two_sweeps_at_once_deliver_each_once(
    platform: Platform, containers: Containers, database: Database
) -> None:
    platform.bind_events()
    labs = [database.add_lab() for _ in range(40)]
    for lab in labs:
        platform.add_notification(lab)
    environ = webhook_environ(platform.webhook)
    both = [containers.start(module="cronjobs outbox", **environ) for _ in range(2)]
    assert [process.wait(2 * HANG_S) for process in both] == [0, 0]
    told = sorted(body["lab_instance_id"] for body in platform.webhook.bodies())
    assert told == labs
    assert platform.broker.depth(EVENTS) == 40


def test_a_dry_run_says_who_waits_and_tells_nobody(
    platform: Platform, lab: int, sweeper: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    platform.add_notification(lab)
    assert cron(["outbox", "--dry-run"]) == 0
    assert f"lab-failed-{lab}-program_ends" in capsys.readouterr().out
    assert not platform.is_done()
    assert platform.webhook.calls == []


def test_a_lost_row_of_the_lab_leaves_its_ids_out(
    platform: Platform, notifier: Notifier, labs: LabStore, lab: int
) -> None:
    platform.add_notification(lab)
    platform.database.rows("DELETE FROM lab_instances")
    assert deliver_one(labs, notifier) is True
    (body,) = platform.webhook.bodies()
    assert (body["lab_instance_id"], body["lab_id"], body["student_id"]) == (lab, None, None)
