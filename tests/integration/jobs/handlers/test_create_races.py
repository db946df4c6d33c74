"""A create that loses or fails: whose objects go, and what the lab's row says.

The database, the broker and the object store are real; the API server is scripted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jobs.cluster.lab_objects import LabGone, LabObjects
from jobs.database.lab_store import LabStore
from jobs.errors import JobError, PermanentError, TransientError
from jobs.failures import Failure
from jobs.handlers import create as create_module
from jobs.handlers.context import Connections, TaskContext
from jobs.handlers.create import create_lab
from jobs.handlers.failed_task import FailureOutcome
from jobs.handlers.give_up import FailedCreate
from tests.support.cluster.fake_cluster import READY, FakeCluster
from tests.support.database.postgres import Database
from tests.support.factories import IMAGE, create_kwargs, make_payload, make_record, make_task
from tests.support.labs.creates import (
    ERROR,
    NO_ROOM,
    NO_SUCH_IMAGE,
    PODS,
    add_pod,
    context_of,
    name_of,
    set_lab,
    when_created,
)


def end(context: TaskContext, lab: int, error: JobError, *, dead_letter: bool = False) -> None:
    task = make_task(kwargs=create_kwargs(lab_instance_id=lab))
    failed = FailedCreate(context, task, dead_lettered=False)
    outcome = FailureOutcome(error=error, dead_letter=dead_letter)
    assert failed.record(outcome) == 0
    failed.clean_up(outcome)


def fail_it(context: TaskContext, lab: int) -> None:
    end(context, lab, ERROR)


def cancel_it(context: TaskContext, lab: int) -> None:
    end(context, lab, Failure.CANCELLED.error())


def test_the_url_has_the_first_port_of_the_service(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    create_lab(context_of(connections, lab), make_payload(lab_instance_id=lab))
    row = database.lab(lab)
    assert (row["status"], row["k8s_pod_name"]) == ("RUNNING", name_of(lab))
    assert row["connection_url"] == f"http://127.0.0.1:{cluster.port}/"
    assert cluster.deleted == []


@pytest.mark.parametrize(("attempt", "expected_s"), [(1, 60), (3, 180), (4, 240), (9, 240)])
def test_later_attempts_wait_longer_but_never_beyond_the_containers_time(
    connections: Connections, lab: int, monkeypatch: pytest.MonkeyPatch, attempt: int, expected_s: int
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(LabObjects, "wait_ready", lambda *_args, timeout_s, **_: waited.append(timeout_s))
    create_lab(context_of(connections, lab, attempt=attempt), make_payload(lab_instance_id=lab))
    assert waited == [expected_s]
    assert expected_s <= create_module.MAX_READY_TIMEOUT_S


@pytest.mark.parametrize(
    ("pod_status", "kind"),
    [(NO_SUCH_IMAGE, PermanentError), (NO_ROOM, TransientError)],
    ids=["permanent", "transient"],
)
def test_an_attempt_that_fails_deletes_nothing_and_leaves_the_lab_pending(
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    lab: int,
    pod_status: dict[str, Any],
    kind: type[JobError],
) -> None:
    cluster.pod_status = pod_status
    with pytest.raises(kind):
        create_lab(context_of(connections, lab), make_payload(lab_instance_id=lab))
    assert cluster.deleted == []
    assert len(cluster.objects) == 3
    assert database.lab(lab)["status"] == "PENDING"
    assert database.ledger() == []


def test_a_failure_is_told_before_the_objects_go(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    add_pod(cluster, lab, name_of(lab))
    seen: list[str] = []
    cluster.on_delete = lambda _path: seen.append(database.lab(lab)["status"])
    fail_it(context_of(connections, lab), lab)
    assert seen == ["FAILED"]
    assert cluster.objects == {}
    assert database.lab(lab)["error_message"] == "The image is wrong."
    assert database.outcomes() == ["failed"]


@pytest.mark.parametrize("pod", ["same", "another"])
def test_a_failure_deletes_nothing_of_a_lab_that_another_container_started(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int, pod: str
) -> None:
    running = name_of(lab) if pod == "same" else name_of(lab, "registry/other:1")
    add_pod(cluster, lab, running)
    set_lab(database, lab, "RUNNING", running)
    fail_it(context_of(connections, lab), lab)
    assert cluster.deleted == []
    assert database.lab(lab)["status"] == "RUNNING"
    assert database.lab(lab)["error_message"] is None
    assert database.outcomes() == ["failed"]


@pytest.mark.parametrize("ends", ["fails", "is redelivered"])
def test_a_create_of_another_image_than_the_running_one_takes_its_own_objects_down(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int, ends: str
) -> None:
    running = name_of(lab, "registry/other:1")
    kept = add_pod(cluster, lab, running)
    add_pod(cluster, lab, name_of(lab))
    set_lab(database, lab, "RUNNING", running)
    if ends == "fails":
        fail_it(context_of(connections, lab), lab)
    else:
        create_lab(context_of(connections, lab), make_payload(lab_instance_id=lab))
    assert [*cluster.objects] == [kept]
    assert database.lab(lab)["status"] == "RUNNING"


def test_a_failure_of_a_lab_without_a_row_deletes_nothing(
    connections: Connections, cluster: FakeCluster, database: Database
) -> None:
    add_pod(cluster, 4711, name_of(4711))
    end(context_of(connections, 4711), 4711, ERROR, dead_letter=True)
    assert cluster.deleted == []
    assert database.outcomes() == ["dead_lettered"]


@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_a_failure_of_a_lab_that_is_over_takes_its_objects_down(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int, status: str
) -> None:
    add_pod(cluster, lab, name_of(lab))
    set_lab(database, lab, status)
    fail_it(context_of(connections, lab), lab)
    assert cluster.objects == {}
    assert database.lab(lab)["status"] == status


def test_a_failure_that_is_not_recorded_deletes_nothing(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    add_pod(cluster, lab, name_of(lab))
    database.rows("DROP TABLE task_ledger")
    with pytest.raises(PermanentError):
        fail_it(context_of(connections, lab), lab)
    assert cluster.deleted == []
    assert database.lab(lab)["status"] == "PENDING"


def test_a_create_that_lost_to_another_image_deletes_only_what_it_made(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    winner = name_of(lab, "registry/other:1")
    kept = add_pod(cluster, lab, winner)
    when_created(cluster, "networkpolicies", lambda: set_lab(database, lab, "RUNNING", winner))
    create_lab(context_of(connections, lab), make_payload(lab_instance_id=lab))
    assert list(cluster.objects) == [kept]
    assert len(cluster.deleted) == 3
    row = database.lab(lab)
    assert (row["status"], row["k8s_pod_name"]) == ("RUNNING", winner)
    assert database.outcomes() == ["noop"]


def test_a_create_that_lost_to_itself_deletes_nothing(
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    lab: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(*_args: object, **_options: object) -> None:
        set_lab(database, lab, "RUNNING", name_of(lab))
        raise LabGone

    monkeypatch.setattr(LabObjects, "wait_ready", gone)
    create_lab(context_of(connections, lab), make_payload(lab_instance_id=lab))
    assert cluster.deleted == []
    assert len(cluster.objects) == 3
    assert database.outcomes() == ["noop"]


def test_a_create_of_another_tag_leaves_the_pod_of_a_lab_that_runs_by_now(
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    lab: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = name_of(lab)
    path = add_pod(cluster, lab, name)

    def other_create_wins(step: str) -> None:
        if step == "rendered":
            set_lab(database, lab, "RUNNING", name)

    monkeypatch.setattr("jobs.steps.observers", [other_create_wins])
    payload = make_payload(lab_instance_id=lab, docker_image=f"{IMAGE}-2")
    assert name_of(lab, payload.docker_image) == name
    create_lab(context_of(connections, lab), payload)
    assert (cluster.deleted, list(cluster.objects)) == ([], [path])
    assert database.lab(lab)["status"] == "RUNNING"


def test_a_create_whose_lab_was_stopped_meanwhile_takes_everything_down(
    connections: Connections, cluster: FakeCluster, database: Database, labs: LabStore, lab: int
) -> None:
    add_pod(cluster, lab, name_of(lab, "registry/other:1"))
    when_created(cluster, "networkpolicies", lambda: labs.request_stop(lab))
    create_lab(context_of(connections, lab), make_payload(lab_instance_id=lab))
    assert cluster.objects == {}
    assert database.lab(lab)["status"] == "PENDING"
    assert database.outcomes() == ["noop"]


def test_a_pod_that_went_while_its_lab_is_wanted_is_tried_again(
    connections: Connections, cluster: FakeCluster, lab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_args: object, **_options: object) -> None:
        raise LabGone

    monkeypatch.setattr(LabObjects, "wait_ready", gone)
    with pytest.raises(TransientError, match="removed while it started"):
        create_lab(context_of(connections, lab), make_payload(lab_instance_id=lab))
    assert cluster.deleted == []


def test_the_pod_of_an_earlier_attempt_that_was_evicted_is_replaced(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    cluster.pod_status = NO_ROOM
    with pytest.raises(TransientError):
        create_lab(context_of(connections, lab), make_payload(lab_instance_id=lab))
    cluster.pod_status = READY
    create_lab(context_of(connections, lab, attempt=2), make_payload(lab_instance_id=lab))
    assert cluster.deleted == [f"{PODS}/{name_of(lab)}"]
    assert database.lab(lab)["status"] == "RUNNING"


@pytest.mark.parametrize("image", [IMAGE, "registry/other:1"], ids=["the same names", "other names"])
def test_a_create_whose_lab_another_took_over_leaves_it_to_that_one(
    connections: Connections, cluster: FakeCluster, database: Database, labs: LabStore, lab: int, image: str
) -> None:
    taken = name_of(lab, image)
    if image != IMAGE:
        add_pod(cluster, lab, taken)
    when_created(cluster, "networkpolicies", lambda: labs.take_over(make_record(lab), lab, pod_name=taken))
    context = context_of(connections, lab)
    create_lab(context, make_payload(lab_instance_id=lab))
    assert database.lab(lab)["status"] == "PENDING"
    assert database.outcomes() == ["noop"]
    assert cluster.names() == {taken}
    # Nor does its message, should it be delivered again.
    create_lab(
        context_of(connections, lab, task_id=context.record.task_id), make_payload(lab_instance_id=lab)
    )
    assert (database.outcomes(), cluster.names()) == (["noop", "noop"], {taken})


def test_of_several_creates_the_first_takes_over_and_of_one_task_the_last_run(
    database: Database, labs: LabStore, lab: int
) -> None:
    first = make_record(lab)
    again, other = make_record(lab, task_id=first.task_id, attempt=2), make_record(lab)
    for record in (first, again, other):
        labs.begin(record)
    took = [labs.take_over(record, lab, pod_name="p") for record in (first, other, first, again, first)]
    assert took == [True, False, True, True, False]
    started = [
        labs.mark_running(record, lab, pod_name="p", connection_url="u") for record in (first, other, again)
    ]
    assert started == [False, False, True]


@pytest.mark.parametrize("ends", [fail_it, cancel_it])
def test_how_another_create_ends_is_no_matter_of_a_lab_that_was_taken_over(
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    labs: LabStore,
    lab: int,
    ends: Callable[[TaskContext, int], None],
) -> None:
    owner, superseded = make_record(lab), context_of(connections, lab)
    for record in (owner, superseded.record):
        labs.begin(record)
    labs.take_over(owner, lab, pod_name=name_of(lab))
    for name in (name_of(lab), name_of(lab, "registry/other:1")):
        add_pod(cluster, lab, name)
    ends(superseded, lab)
    assert (database.lab(lab)["status"], cluster.names()) == ("PENDING", {name_of(lab)})
    assert superseded.record.ending
    # A later run of its task, at whose beginning the database was away.
    ends(context_of(connections, lab, task_id=owner.task_id), lab)
    assert (database.lab(lab)["status"] != "PENDING", cluster.names()) == (True, set())


@pytest.mark.parametrize("columns", [{"status": "RUNNING"}, {"stop_requested_at": "now"}], ids=str)
def test_a_lab_that_is_not_wanted_is_not_taken_over(
    database: Database, labs: LabStore, columns: dict[str, str]
) -> None:
    lab = database.add_lab(**columns)
    assert not labs.take_over(make_record(lab), lab, pod_name="p")
