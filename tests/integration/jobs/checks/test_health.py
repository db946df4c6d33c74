"""health_check_pods on a real database and broker; the API server is scripted, for states and races."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg2
import pytest

import jobs.cluster.client
from dispatcher.broker import topology
from dispatcher.tasks import CREATE_LAB_POD, DELETE_LAB_POD, SCALE_LAB_RESOURCES
from jobs.checks import health, running_labs
from jobs.database import snapshot_rows as rows
from jobs.database.ledger import Ending
from jobs.errors import JobError, PermanentError
from jobs.failures import Failure
from jobs.verify import objects
from tests.support.broker.rabbitmq import Broker
from tests.support.cluster.fake_cluster import READY
from tests.support.database.odd_rows import ODD_TIMES, old_rows_may_have_any_time
from tests.support.factories import IMAGE, make_record
from tests.support.labs.health import Checking, ago, unready
from tests.support.labs.verifying import age, path_of, pod_name

NUMBERS = ("looked_at", "ready", "unready", "going", "failed", "restarted", "left_alone", "put_off")


def numbers(result: dict[str, Any]) -> dict[str, int]:
    """Return what of a result is not 0."""
    return {name: result[name] for name in NUMBERS if result[name]}


def test_healthy_labs_cost_one_list_in_pages_and_no_get(
    checking: Checking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "PAGE", 2)
    monkeypatch.setattr(rows, "PAGE", 2)
    labs = checking.labs(5)
    asked: list[str] = []
    request = checking.connections.cluster._request

    def note(method: str, path: str, *words: Any, **options: Any) -> Any:
        asked.append(f"{method} {path.partition('?')[0]}")
        return request(method, path, *words, **options)

    monkeypatch.setattr(checking.connections.cluster, "_request", note)
    result = checking.check()
    assert numbers(result) == {"looked_at": 5, "ready": 5}
    assert asked == ["GET /api/v1/namespaces/labs/pods"] * 3
    assert checking.statuses(labs) == ["RUNNING"] * 5


def test_a_lab_without_its_pod_fails_with_all_that_belongs_to_it(checking: Checking) -> None:
    lost, fine = checking.labs(2)
    del checking.cluster.objects[path_of("Pod", pod_name(lost))]
    result = checking.check()
    assert numbers(result) == {"looked_at": 2, "ready": 1, "failed": 1}
    assert result["causes"] == {"pod_gone": 1}
    row = checking.database.lab(lost)
    assert (row["status"], row["connection_url"]) == ("FAILED", None)
    assert row["error_message"] == "This lab is gone from the cluster. Please start it again."
    assert checking.cluster.names() == {pod_name(fine)}, "its Service and its policy went as well"
    assert checking.told(lost) == [("lab.failed", "pod_gone", "admin")]
    run = checking.run_of(lost)
    assert (run["outcome"], run["details"]["cause"]) == ("succeeded", "pod_gone")
    assert run["details"]["seen"]["note"] == "the lab had no Pod"
    assert numbers(checking.check()) == {"looked_at": 1, "ready": 1}


def test_an_evicted_pod_fails_its_lab_and_is_taken_away(checking: Checking) -> None:
    lost, _ = checking.labs(2)
    said = "The node was low on resource: memory."
    checking.patch(lost, {"phase": "Failed", "reason": "Evicted", "message": said})
    assert checking.check()["causes"] == {"pod_evicted": 1}
    assert said in checking.run_of(lost)["details"]["evidence"]
    assert pod_name(lost) not in checking.cluster.names()


def test_a_pod_that_is_not_ready_for_a_moment_is_left_alone(checking: Checking) -> None:
    lab, _ = checking.labs(2)
    checking.patch(lab, {"phase": "Running", "conditions": unready(60)})
    assert numbers(checking.check()) == {"looked_at": 2, "ready": 1, "unready": 1}
    checking.patch(lab, {"phase": "Running", "conditions": unready(130)})
    assert checking.check(dry_run=True)["causes"] == {"stopped_answering": 1}
    checking.set(unready_limit_s=140)
    assert numbers(checking.check()) == {"looked_at": 2, "ready": 1, "unready": 1}


def test_a_pod_whose_deletion_is_under_way_is_judged_when_that_hangs(checking: Checking) -> None:
    lab, _ = checking.labs(2)
    checking.pod(lab)["metadata"]["deletionTimestamp"] = ago(30)
    assert numbers(checking.check()) == {"looked_at": 2, "ready": 1, "going": 1}
    checking.pod(lab)["metadata"]["deletionTimestamp"] = ago(61)
    checking.patch(lab, {"phase": "Running", "conditions": unready(400, containers="True")})
    assert checking.check()["causes"] == {"node_away": 1}
    assert checking.told(lab) == [("lab.failed", "node_away", "admin")]


def test_a_dry_run_says_each_verdict_and_changes_nothing(
    checking: Checking, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "jobs.checks.health")
    lost, _ = checking.labs(2)
    checking.lose(lost)
    result = checking.check(dry_run=True)
    assert (result["would_fail"], result["causes"]) == (1, {"pod_gone": 1})
    assert checking.statuses([lost]) == ["RUNNING"]
    assert [r.message for r in caplog.records if getattr(r, "action", "") == "would_fail"] == [
        f"lab {lost} would fail: This lab is gone from the cluster. Please start it again."
    ]
    assert checking.told(lost) == []


def test_a_pod_without_our_labels_is_nobodys_to_judge(checking: Checking) -> None:
    lab, _ = checking.labs(2)
    checking.pod(lab)["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "helm"}
    checking.patch(lab, {"phase": "Failed", "reason": "Evicted"})
    assert numbers(checking.check()) == {"looked_at": 2, "ready": 1, "left_alone": 1}
    assert checking.statuses([lab]) == ["RUNNING"]
    assert checking.cluster.deleted == []


@pytest.fixture
def after_the_look(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What happens between the look and what follows from it."""
    actions: list[Callable[[], object]] = []
    look = running_labs.look_at_running_labs

    def late(*words: Any, **options: Any) -> Any:
        found = look(*words, **options)
        for act in actions:
            act()
        return found

    monkeypatch.setattr(health, "look_at_running_labs", late)
    return actions


def test_what_changes_between_look_and_act_is_left_alone(
    checking: Checking, after_the_look: list[Callable[[], object]]
) -> None:
    stopped, back, resized, queued, fine = checking.labs(5)
    for lab in (stopped, back, resized, queued):
        checking.patch(lab, {"phase": "Failed", "reason": "Evicted"})
    claim = (
        "INSERT INTO task_ledger (task_id, task_name, lab_instance_id, attempt, redelivered, queue,"
        " claimed_at, outcome) VALUES ('x', 'scale', %s, 1, false, 'q', now(), 'started')"
    )
    add = (
        "INSERT INTO task_outbox (task_name, kwargs) VALUES ('x', jsonb_build_object('lab_instance_id', %s))"
    )
    database = checking.database
    after_the_look += [
        lambda: database.rows("UPDATE lab_instances SET stop_requested_at = now() WHERE id = %s", stopped),
        lambda: checking.patch(back, READY),
        lambda: database.rows(claim, resized),
        lambda: database.rows(add, queued),
    ]
    assert numbers(checking.check()) == {"looked_at": 5, "ready": 1, "left_alone": 4}
    assert checking.statuses([stopped, back, resized, queued, fine]) == ["RUNNING"] * 5
    assert checking.cluster.deleted == []


def test_a_row_that_somebody_holds_keeps_no_other_lab_running(checking: Checking) -> None:
    held, other = checking.labs(2)
    for lab in (held, other):
        checking.patch(lab, {"phase": "Failed", "reason": "Evicted"})
    with closing(psycopg2.connect(checking.database.url)) as holder:
        holder.cursor().execute("SELECT FROM lab_instances WHERE id = %s FOR UPDATE", (held,))
        assert numbers(checking.check()) == {"looked_at": 2, "failed": 1, "left_alone": 1}
    assert checking.statuses([held, other]) == ["RUNNING", "FAILED"]


def test_a_row_that_the_database_keeps_as_it_is_keeps_no_other_lab_running(checking: Checking) -> None:
    kept, other = checking.labs(2)
    for lab in (kept, other):
        checking.patch(lab, {"phase": "Failed", "reason": "Evicted"})
    only = f"ALTER TABLE lab_instances ADD CHECK (id <> {kept} OR status = 'RUNNING')"
    checking.database.rows(only)
    with pytest.raises(PermanentError) as raised:
        checking.check()
    assert raised.value.failure is Failure.DATABASE_REFUSES
    assert checking.statuses([kept, other]) == ["RUNNING", "FAILED"]


def test_a_run_that_was_killed_shields_no_lab_once_its_task_has_ended(checking: Checking) -> None:
    lab, at_work = checking.labs(2)
    for one in (lab, at_work):
        checking.patch(one, {"phase": "Failed", "reason": "Evicted"})
        killed = make_record(one)
        checking.connections.labs.begin(killed)
        if one == lab:
            checking.connections.labs.record(make_record(one, task_id=killed.task_id), Ending("noop"))
    age_ledger = "UPDATE task_ledger SET claimed_at = now() - interval '2 minutes'"
    checking.database.rows(f"{age_ledger}, finished_at = finished_at - interval '2 minutes'")
    assert numbers(checking.check()) == {"looked_at": 2, "failed": 1, "left_alone": 1}
    assert checking.statuses([lab, at_work]) == ["FAILED", "RUNNING"]


@pytest.mark.parametrize("name", ["", "..", "x?watch=true", "Not_A_Name"])
def test_a_row_whose_pod_can_have_no_such_name_has_lost_it(checking: Checking, name: str) -> None:
    lab, fine = checking.labs(2)
    checking.database.rows("UPDATE lab_instances SET k8s_pod_name = %s WHERE id = %s", name, lab)
    assert numbers(checking.check()) == {"looked_at": 2, "ready": 1, "failed": 1}
    assert checking.statuses([lab, fine]) == ["FAILED", "RUNNING"]


def test_a_lab_that_became_running_during_the_look_is_not_judged(checking: Checking) -> None:
    lab, _ = checking.labs(2)
    checking.lose(lab)
    checking.database.rows("UPDATE lab_instances SET updated_at = now() + interval '5 s' WHERE id = %s", lab)
    assert numbers(checking.check()) == {"looked_at": 2, "ready": 1, "left_alone": 1}


def test_two_checks_at_once_fail_a_lab_once(
    checking: Checking, after_the_look: list[Callable[[], object]]
) -> None:
    lost, _ = checking.labs(2)
    checking.lose(lost)
    others: list[dict[str, Any]] = []

    def other_check() -> None:
        after_the_look.clear()
        others.append(checking.check())

    after_the_look.append(other_check)
    result = checking.check()
    assert (others[0]["failed"], result["failed"], result["left_alone"]) == (1, 0, 1)
    assert len(checking.told(lost)) == 1
    assert checking.run_of(lost)["outcome"] == "succeeded"


def test_a_program_that_ran_out_of_memory_and_is_ready_again_is_told_of_once(checking: Checking) -> None:
    (lab,) = checking.labs()
    ended = {"reason": "OOMKilled", "exitCode": 137, "startedAt": ago(600), "finishedAt": ago(60)}
    container = {"name": "lab", "ready": True, "restartCount": 1, "state": {"running": {}}}
    checking.patch(lab, {**READY, "containerStatuses": [{**container, "lastState": {"terminated": ended}}]})
    for _ in range(2):
        result = checking.check()
        assert (result["ready"], result["ran_out_of_memory"], result["failed"]) == (1, 1, 0)
    assert checking.told(lab) == [("lab.out_of_memory", "out_of_memory", "teacher")]
    assert checking.statuses([lab]) == ["RUNNING"]


def test_a_lab_that_runs_out_of_memory_again_and_again_is_told_of_once_an_hour(checking: Checking) -> None:
    labs = checking.labs(2)
    hour = datetime.now(timezone.utc).replace(minute=0, second=0, microsecond=0)
    container = {"name": "lab", "ready": True, "restartCount": 1, "state": {"running": {}}}
    for minute in range(30, 35):
        finished = (hour + timedelta(minutes=minute)).isoformat()
        ended = {"reason": "OOMKilled", "exitCode": 137, "finishedAt": finished}
        for lab in labs:
            status = {**container, "lastState": {"terminated": ended}}
            checking.patch(lab, {**READY, "containerStatuses": [status]})
        assert checking.check()["ran_out_of_memory"] == 2
    for lab in labs:
        assert checking.told(lab) == [("lab.out_of_memory", "out_of_memory", "teacher")]


def test_a_lab_is_started_again_where_its_cause_says_so(checking: Checking, broker: Broker) -> None:
    checking.set(restart_causes=["pod_gone"], max_restarts=1)
    lost, _ = checking.labs(2)
    checking.database.rows("UPDATE lab_instances SET max_expires_at = expires_at WHERE id = %s", lost)
    checking.lose(lost)
    result = checking.check()
    assert (result["failed"], result["restarted"]) == (1, 1)
    (again,) = checking.database.rows("SELECT * FROM lab_instances WHERE restart_of = %s", lost)
    old = checking.database.lab(lost)
    assert (again["status"], again["lab_id"], again["student_id"]) == ("PENDING", 7, 42)
    assert (again["expires_at"], again["max_expires_at"]) == (old["expires_at"], old["max_expires_at"])
    assert old["error_message"].endswith(f" It was started again as lab {again['id']}.")
    assert checking.told(lost) == [
        ("lab.restarted", "restarted", "student"),
        ("lab.failed", "pod_gone", "admin"),
    ]
    (facts,) = checking.database.rows("SELECT facts FROM notifications WHERE event_type = 'lab.restarted'")
    assert facts["facts"] == {"because": "pod_gone", "started_again_as": again["id"]}
    message = broker.take(topology.QUEUE_NORMAL)
    assert (message.headers["task"], message.headers["id"]) == (CREATE_LAB_POD, again["celery_task_id"])
    asked = json.loads(message.body)[1]
    assert (asked["lab_instance_id"], asked["docker_image"]) == (again["id"], IMAGE)
    assert checking.outbox() == []


def test_a_check_that_a_server_ends_finishes_what_it_has_failed(
    checking: Checking, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.cluster.client, "BLIP_S", 0.2)
    checking.set(restart_causes=["pod_evicted"])
    first, second, fine = checking.labs(3)
    for lab in (first, second):
        checking.patch(lab, {"phase": "Failed", "reason": "Evicted"})
    checking.cluster.unavailable.add(path_of("Pod", pod_name(second)))
    with pytest.raises(JobError):
        checking.check()
    assert checking.statuses([first, second]) == ["FAILED", "RUNNING"]
    assert checking.cluster.names() == {pod_name(second), pod_name(fine)}
    (again,) = restarted(checking, first)
    assert broker.take(topology.QUEUE_NORMAL).headers["id"] == again["celery_task_id"]


def restarted(checking: Checking, lab: int) -> list[dict[str, Any]]:
    return checking.database.rows("SELECT * FROM lab_instances WHERE restart_of = %s", lab)


def test_restarts_in_a_row_are_bounded(checking: Checking) -> None:
    checking.set(restart_causes=["pod_gone"], max_restarts=1)
    first, second, _ = checking.labs(3)
    checking.database.rows("UPDATE lab_instances SET restart_of = %s WHERE id = %s", first, second)
    checking.lose(second)
    assert checking.check()["restarted"] == 0
    assert checking.statuses([second]) == ["FAILED"]
    checking.set(max_restarts=2)
    third, _ = checking.labs(2)
    checking.database.rows("UPDATE lab_instances SET restart_of = %s WHERE id = %s", second, third)
    checking.lose(third)
    assert checking.check()["restarted"] == 0, "two in a row were already"


@pytest.mark.parametrize(
    "why", ["unknown request", "time is over", "odd request", "other cause", "by default"]
)
def test_a_lab_is_not_started_again(checking: Checking, why: str) -> None:
    checking.set(
        restart_causes=[] if why == "by default" else ["node_away" if why == "other cause" else "pod_gone"]
    )
    lost, _ = checking.labs(2)
    if why == "unknown request":
        checking.database.rows("UPDATE task_ledger SET details = '{}' WHERE lab_instance_id = %s", lost)
    if why == "odd request":
        odd = "UPDATE task_ledger SET details = %s WHERE lab_instance_id = %s"
        checking.database.rows(odd, '{"request": {"docker_image": "!", "lab_id": 7}}', lost)
    if why == "time is over":
        checking.database.expire(lost)
    checking.lose(lost)
    result = checking.check()
    assert (result["failed"], result["restarted"]) == (1, 0)
    assert restarted(checking, lost) == []
    assert checking.outbox() == []
    assert checking.database.lab(lost)["error_message"].endswith("Please start it again.")


@pytest.mark.parametrize("found", ["done", "changed", "superseded"])
def test_a_resized_lab_is_started_again_with_its_last_resources(
    checking: Checking, broker: Broker, found: str
) -> None:
    checking.set(restart_causes=["pod_gone"])
    lost, _ = checking.labs(2)
    resized = {"lab_instance_id": lost, "new_resources": {"memory": "768Mi"}}
    anew = {"lab_instance_id": lost, "new_resources": {"memory": "1Gi"}}
    record = make_record(lost, task_name=SCALE_LAB_RESOURCES, details={"request": resized})
    checking.connections.labs.record(record, Ending("succeeded"))
    if found != "changed":
        # An attempt that found it done by one that was killed; or that another change took the place of.
        record = make_record(lost, task_name=SCALE_LAB_RESOURCES, details={"request": anew})
        result = {"after": {"memory": "1Gi"}} if found == "done" else {"why": "another change took its place"}
        checking.connections.labs.record(record, Ending("noop", result=result))
    age(checking.database)
    checking.lose(lost)
    assert checking.check()["restarted"] == 1
    asked = json.loads(broker.take(topology.QUEUE_NORMAL).body)[1]
    assert asked["resources"] == {"memory": "1Gi" if found == "done" else "768Mi"}


@pytest.mark.parametrize(("asked", "status"), [("before", True), ("after", False)])
def test_a_stop_that_was_asked_for_before_the_lab_was_lost_stops_the_one_in_its_place(
    checking: Checking, asked: str, status: bool
) -> None:
    checking.set(restart_causes=["pod_gone"])
    lost, _ = checking.labs(2)
    before = datetime.now(timezone.utc)
    checking.lose(lost)
    assert checking.check()["restarted"] == 1
    (again,) = restarted(checking, lost)
    asked_at = before if asked == "before" else datetime.now(timezone.utc) + timedelta(seconds=5)
    for _ in range(2):
        checking.connections.labs.request_stop(lost, asked_at=asked_at)
    assert (checking.database.lab(again["id"])["stop_requested_at"] is not None) is status
    deletes = [(row["task_name"], row["lab_instance_id"]) for row in checking.outbox()]
    assert deletes == ([(DELETE_LAB_POD, again["id"])] if status else [])


def test_rows_with_odd_times_are_named_and_stop_no_other_lab(checking: Checking) -> None:
    old_rows_may_have_any_time(checking.database)
    labs = checking.labs(2 * len(ODD_TIMES) + 1)
    for lab, moment in zip(labs[1:], 2 * ODD_TIMES, strict=True):
        statement = "UPDATE lab_instances SET created_at = %s, updated_at = %s WHERE id = %s"
        checking.database.rows(statement, moment, moment, lab)
    lost = labs[0], labs[1], labs[4]
    for lab in lost:
        del checking.cluster.objects[path_of("Pod", pod_name(lab))]
    result = checking.check()
    assert numbers(result) == {"looked_at": len(labs), "ready": len(labs) - 3, "failed": 3}
    assert result["odd_rows"] == labs[1:]
    assert {checking.database.lab(lab)["status"] for lab in lost} == {"FAILED"}
