"""`autolabs explain` on rows that stores, relays and containers wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from sqlalchemy import Engine

from console.explain.explanation import Explanation, explain
from console.explain.reading import MAX_RUNS, UnknownLab, read_lab_facts
from dispatcher.results import ResultStore
from dispatcher.tasks import CLEANUP_TIMEOUT_LABS, DELETE_LAB_POD, HEALTH_CHECK_PODS, SYNC_LAB_STATUS
from jobs.database.lab_store import LabStore
from jobs.database.ledger import Ending
from jobs.failures import Failure
from tests.support.broker.outbox import insert_create
from tests.support.broker.rabbitmq import Broker
from tests.support.containers.container import Containers
from tests.support.database.odd_rows import ODD_TIMES, old_rows_may_have_any_time
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_record
from tests.support.labs.cleaning import Cleaning

IMAGE = Failure.IMAGE_NOT_LOADABLE.error(image="x:1", evidence="ErrImagePull: postgresql://u:hidden@h/d")
NO_ROOM = Failure.NO_ROOM.error(evidence="0/3 nodes are available")

Read = Callable[[Any], Explanation]


@pytest.fixture
def read(engine: Engine) -> Read:
    return lambda given: explain(read_lab_facts(engine, str(given)))


def test_a_lab_is_found_by_its_id_its_tasks_and_its_pod(
    read: Read, database: Database, labs: LabStore
) -> None:
    lab = database.add_lab(celery_task_id="4711")
    record = make_record(lab, task_id="later")
    labs.begin(record)
    assert read(lab).situation == "at_work"
    labs.mark_running(record, lab, pod_name=f"lab-instance-{lab}-demo", connection_url="http://x/")
    found = read(lab)
    assert found.situation == "running"
    assert "RUNNING at http://x/" in [entry.text for entry in found.timeline]
    for given in ("4711", "later", f"lab-instance-{lab}-demo", f"lab-instance-{lab}"):
        assert read(given).commands[0] == f"kubectl get pod -n labs lab-instance-{lab}-demo"


def test_a_task_is_found_while_it_waits_in_the_outbox(read: Read, database: Database, lab: int) -> None:
    insert_create(database, lab, "waiting")
    assert (read("waiting").situation, read(lab).situation) == ("outbox_waiting", "outbox_waiting")


def test_a_failed_lab_says_why_and_what_was_seen(
    read: Read, database: Database, labs: LabStore, lab: int
) -> None:
    record = make_record(lab)
    labs.begin(record)
    log = {"container": "lab", "lines": ["password=hidden", "no such file"]}
    record.details["seen"] = {"log": log, "pod": {"name": "p"}}
    labs.mark_failed(record, IMAGE, outcome="failed")
    failing = "UPDATE notifications SET failures = 1, last_error = %s"
    database.rows(failing, "https://u:hidden@hook/ answered 503")
    found = read(lab)
    assert (found.situation, found.who.value) == ("failed", "teacher")
    assert found.why is not None
    assert (found.why.cause, found.why.category) == ("image_not_loadable", "PERMANENT_IMAGE_ERROR")
    assert found.why.sentence.startswith('The image "x:1" of this lab cannot be loaded.')
    assert found.seen[-2:] == ("  | no such file", "evidence: ErrImagePull: postgresql://u:***@h/d")
    assert "answered 503" in found.told[0]
    assert "hidden" not in repr(found)


def test_attempts_are_told_one_by_one(read: Read, labs: LabStore, lab: int) -> None:
    first = make_record(lab, task_id="t")
    labs.begin(first)
    first.details["retry_delay_s"] = 5.5
    labs.record(first, Ending.of_error("retried", NO_ROOM))
    assert (read(lab).situation, read(lab).who.value) == ("retry_waits", "nobody")
    labs.begin(make_record(lab, task_id="t", attempt=2))
    found = read(lab)
    assert found.situation == "at_work"
    assert found.why is not None
    assert found.why.cause == "no_room"
    assert "again after 5.5 s: There is no free place" in found.timeline[1].text


def test_a_killed_container_and_the_one_that_took_over_are_told_apart(
    read: Read, containers: Containers, broker: Broker, database: Database, lab: int
) -> None:
    broker.publish_task(kwargs=create_kwargs(lab_instance_id=lab))
    code, _ = containers.run(module="tests.support.containers.faulty_job", TEST_FAULT="kill:begun")
    assert code == -9
    assert read(lab).situation == "at_work"  # nobody can know yet
    containers.run_here(JOB_NAME="job-2")
    found = read(lab)
    assert (found.situation, found.who.value) == ("failed", "administrator")
    killed, last = (entry.text for entry in found.timeline[1:3])
    assert "its container was killed, the message came again" in killed
    assert "delivered again (Job job-2" in last
    assert found.commands[0] == "kubectl logs -n platform job/job-2"


def test_a_dead_letter_that_was_put_back_names_who_did_it(
    read: Read, database: Database, labs: LabStore, lab: int
) -> None:
    record = make_record(lab, task_id="d", task_name=DELETE_LAB_POD)
    labs.request_stop(lab)
    labs.record(record, Ending.of_error("dead_lettered", NO_ROOM))
    assert "autolabs dlq show d" in read(lab).commands
    database.rows(
        "INSERT INTO dead_letter_actions (actor, action, message_key, task_id, task_name, lab_instance_id,"
        " routing_key, body_bytes) VALUES ('anna@console', 'requeued', 'k', 'd', %s, %s, 'lab.delete', 9)",
        DELETE_LAB_POD,
        lab,
    )
    for given in (lab, "d"):
        assert read(given).situation == "requeued"
        assert "by anna@console" in read(given).next


def test_a_cancelled_start_is_told_before_and_after(
    read: Read, engine: Engine, database: Database, labs: LabStore
) -> None:
    lab = database.add_lab(celery_task_id="t")
    ResultStore(engine).cancel("t")
    assert read(lab).situation == "cancelled"
    record = make_record(lab, task_id="t")
    assert labs.begin(record) is False
    labs.mark_cancelled(record, "The start of this lab was cancelled.")
    found = read(lab)
    assert found.situation == "start_cancelled"
    assert found.headline.endswith("because its start was cancelled.")


def test_a_stop_by_the_cleanup_is_told_from_one_by_somebody(
    read: Read, database: Database, labs: LabStore, cleaning: Cleaning, broker: Broker
) -> None:
    lab, other = database.add_lab(status="RUNNING"), database.add_lab(status="RUNNING")
    database.expire(lab)
    assert read(lab).situation == "running_past_end"
    assert cleaning.run()["deletes_published"] == 1
    assert read(lab).situation == "stop_asked"
    task_id = broker.take("celery.lab_operations.high").headers["id"]
    labs.mark_stopped(make_record(lab, task_id=task_id, task_name=DELETE_LAB_POD), lab, deleted=3)
    labs.mark_stopped(make_record(other, task_name=DELETE_LAB_POD), other, deleted=3)
    assert read(lab).headline.endswith("by the cleanup, because its time was over.")
    assert "by the delete task " in read(other).headline


@pytest.mark.parametrize("outcome", ["failed", "dead_lettered"])
def test_a_cleanup_that_refuses_is_told_until_one_does_its_work(
    read: Read, database: Database, labs: LabStore, outcome: Any
) -> None:
    lab = database.add_lab(status="RUNNING")
    database.expire(lab)

    def cleanup(ending: Ending) -> None:
        record = make_record(None, task_name=CLEANUP_TIMEOUT_LABS)
        labs.begin(record)
        labs.record(record, ending)

    refusal = Failure.TOO_MANY_AT_ONCE.error(problem="6 of 9 live labs would end")
    cleanup(Ending.of_error(outcome, refusal))
    cleanup(Ending("succeeded", result={"dry_run": True, "would_delete": 6}))
    labs.begin(make_record(None, task_name=CLEANUP_TIMEOUT_LABS))
    found = read(lab)
    assert (found.situation, found.who.value) == ("cleanup_refused", "administrator")
    assert "(too_many_at_once)" in found.next
    assert "autolabs schedule run-now cleanup-timeout-labs --force" in found.commands
    cleanup(Ending("succeeded", result={"deletes_published": 0}))
    assert read(lab).situation == "running_past_end"


def test_a_lab_without_a_row_is_told_by_what_is_about_it(read: Read, labs: LabStore) -> None:
    record = make_record(4711, task_id="early")
    labs.record(record, Ending.of_error("retried", Failure.LAB_UNKNOWN.error(lab_instance_id=4711)))
    assert (read(4711).situation, read("early").who.value) == ("no_row", "backend")


def test_a_task_that_could_not_be_read_is_found_by_its_id(
    read: Read, database: Database, labs: LabStore
) -> None:
    lab = database.add_lab(celery_task_id="t")
    unreadable = make_record(None, task_id="t", task_name="")
    labs.record(
        unreadable, Ending.of_error("dead_lettered", Failure.MESSAGE_UNREADABLE.error(problem="no JSON"))
    )
    for given in (lab, "t"):
        assert (read(given).situation, read(given).who.value) == ("dead_lettered", "backend")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("9", "lab 9 is not in the database, and no task was ever about it"),
        ("0", "no lab, task or pod '0' is known"),
        ("lab-instance-9-demo", "lab 9 is not in the database"),
        ("lab-instance-99999999999999999999-x", "no lab, task or pod"),
        ("99999999999999999999", "no lab, task or pod '99999999999999999999' is known"),
        ("nowhere", "no lab, task or pod 'nowhere' is known"),
        ("cleanup", "task cleanup is about no lab; see: autolabs task status cleanup"),
        ("a\x00b", "this is no lab, no task and no lab's pod"),
        ("", "this is no lab, no task and no lab's pod"),
        ("\x1b[31m", "this is no lab, no task and no lab's pod"),
    ],
)
def test_what_is_not_known_is_said(engine: Engine, labs: LabStore, given: str, said: str) -> None:
    labs.record(make_record(task_id="cleanup", task_name=CLEANUP_TIMEOUT_LABS), Ending("succeeded"))
    with pytest.raises(UnknownLab, match="^" + said[:40].replace("(", r"\(")) as caught:
        read_lab_facts(engine, given)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_database_of_before_notifications_is_read_all_the_same(
    read: Read, database: Database, labs: LabStore, lab: int
) -> None:
    labs.mark_failed(make_record(lab, task_id="t"), IMAGE, outcome="failed")
    database.rows("DROP TABLE notifications, dead_letter_actions")
    assert (read(lab).situation, read("t").who.value) == ("failed", "teacher")


def test_a_database_of_before_restarts_is_read_all_the_same(
    read: Read, database: Database, labs: LabStore, lab: int
) -> None:
    labs.mark_failed(make_record(lab, task_id="t"), IMAGE, outcome="failed")
    database.rows("ALTER TABLE lab_instances DROP COLUMN max_expires_at, DROP COLUMN restart_of")
    database.rows("ALTER TABLE notifications DROP COLUMN occasion")
    assert (read(lab).situation, read("t").who.value) == ("failed", "teacher")
    assert len(read(lab).told) == 1


def test_a_running_lab_names_the_last_looks_at_all_labs(
    read: Read, database: Database, labs: LabStore
) -> None:
    lab = database.add_lab(max_expires_at="infinity")
    record = make_record(lab)
    labs.begin(record)
    labs.mark_running(record, lab, pod_name=f"lab-instance-{lab}-demo", connection_url="http://x/")
    assert "No health check looked at it that the ledger knows" in read(lab).next
    for name in (HEALTH_CHECK_PODS, SYNC_LAB_STATUS):
        labs.record(make_record(task_name=name), Ending("succeeded"))
    labs.record(make_record(task_name=HEALTH_CHECK_PODS), Ending("failed"))
    found = read(lab)
    assert "The last health check was just now, the last sync just now" in found.next
    assert "which may be until 9999-01-01 00:00" in found.next
    assert f"autolabs verify {lab}" in found.commands


def test_a_lab_that_took_the_place_of_another_names_it_and_is_named(
    read: Read, database: Database, labs: LabStore
) -> None:
    old = database.add_lab(status="RUNNING", k8s_pod_name="x")
    record = make_record(old, task_name=SYNC_LAB_STATUS, details={"found": "no Pod", "done": "it is FAILED"})
    error = Failure.POD_GONE.error(evidence="gone")
    now = datetime.now(timezone.utc)
    assert labs.mark_lost(record, error, status="RUNNING", pod_name="x", as_of=now)
    assert (read(old).situation, read(old).who.value) == ("failed", "administrator")
    assert "sync found: no Pod; it is FAILED" in [entry.text for entry in read(old).timeline]
    new = database.add_lab(restart_of=old)
    assert (read(old).situation, read(old).who.value) == ("restarted", "nobody")
    assert read(old).next == f"lab {new} was started in its place"
    assert read(new).timeline[0].text == f"asked for in place of lab {old}, which was lost"


def test_news_is_told_and_is_no_failure(read: Read, database: Database, lab: int) -> None:
    database.rows(
        "INSERT INTO notifications (event_type, lab_instance_id, cause, occasion, told, message, task_id)"
        " VALUES ('lab.ends_soon', %s, 'ends_soon_15', '2030-01-01T10:00Z', 'student', 'It ends.', 't')",
        lab,
    )
    database.rows("UPDATE lab_instances SET status = 'FAILED', failed_at = now() WHERE id = %s", lab)
    found = read(lab)
    assert found.told[0].startswith("student (ends_soon_15) of 2030-01-01 10:00: ")
    assert found.told[1] == "nobody was notified of the failure: there is no record of it"
    assert found.why is None


def test_odd_rows_are_read_within_bounds(engine: Engine, database: Database, labs: LabStore) -> None:
    lab = database.add_lab(status="RUNNING", expires_at="infinity")
    for _ in range(MAX_RUNS + 3):
        labs.record(make_record(lab), Ending("noop"))
    huge = {
        "evidence": "x" * 100_000,
        "cause": "huge",
        "seen": {"log": {"lines": ["y" * 9000]}},
        "other": "z",
    }
    database.rows("UPDATE task_ledger SET details = %s", json.dumps(huge))
    facts = read_lab_facts(engine, str(lab))
    assert (len(facts.runs), facts.earlier_runs) == (MAX_RUNS, 3)
    assert facts.runs[0].id < facts.runs[-1].id
    assert set(facts.runs[-1].details) == {"cause", "seen"}
    assert len(json.dumps(facts.runs[-1].details)) < 5000
    assert "9999-01-01" in explain(facts).next


@pytest.mark.parametrize("moment", ODD_TIMES)
@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "STOPPED", "FAILED"])
def test_a_lab_with_odd_times_is_explained(read: Read, database: Database, status: str, moment: str) -> None:
    old_rows_may_have_any_time(database)
    names = ("created_at", "updated_at", "expires_at", "max_expires_at", "started_at")
    times = dict.fromkeys(names, moment) | {"failed_at" if status == "FAILED" else "stopped_at": moment}
    lab = database.add_lab(status=status, k8s_pod_name="", connection_url="", **times)
    assert read(lab).timeline
