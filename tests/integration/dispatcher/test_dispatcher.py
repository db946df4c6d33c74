"""The public face of the dispatcher: the real one and the one in memory pass the same tests."""

from __future__ import annotations

import copy
import json
import os
import pickle
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol

import pytest

from dispatcher import (
    CREATE_LAB_POD,
    DELETE_LAB_POD,
    CreateLabPod,
    DeleteLabPod,
    Dispatcher,
    InvalidTask,
    TaskFailed,
    TaskHandle,
    TaskRequest,
    TaskRevoked,
    TaskState,
    TaskTimeout,
    Unroutable,
    outbox,
)
from dispatcher.broker import delay_ladder, topology
from dispatcher.engine import make_engine
from dispatcher.failure_contract import Category
from dispatcher.message.envelope import TaskMessage, decode
from dispatcher.tasks import SCALE_LAB_RESOURCES
from dispatcher.testing import InMemoryDispatcher
from jobs.database.lab_store import LabStore
from jobs.database.ledger import Ending, TaskRunRecord
from tests.support.broker.rabbitmq import Broker
from tests.support.database.postgres import Database
from tests.support.factories import IMAGE, create_kwargs, make_record
from tests.support.waiting import HANG_S, eventually


class Face(Protocol):
    """A dispatcher, and what a test must do to the world behind it."""

    dispatcher: Dispatcher

    def received(self, count: int) -> list[TaskMessage]:
        """Return what is in the queues, create before delete."""

    def start(self, task_id: str) -> None:
        """Let a container begin the task."""

    def finish(self, task_id: str, result: dict[str, Any]) -> None: ...

    def fail(self, task_id: str, category: Category, sentence: str) -> None: ...

    def take_queues_away(self) -> None: ...


class RealFace:
    def __init__(self, broker: Broker, database: Database, labs: LabStore) -> None:
        self.dispatcher = Dispatcher(broker.url, database=database.url)
        self._broker = broker
        self._labs = labs
        self._records: dict[str, TaskRunRecord] = {}

    def received(self, count: int) -> list[TaskMessage]:
        queues = (topology.QUEUE_NORMAL, topology.QUEUE_HIGH)
        eventually(lambda: sum(map(self._broker.depth, queues)) == count, what=f"{count} tasks in {queues}")
        taken = [self._broker.take(queue) for queue in queues for _ in range(self._broker.depth(queue))]
        return [decode(one.body, one.properties) for one in taken]

    def start(self, task_id: str) -> None:
        record = make_record(task_id=str(task_id))
        self._records[task_id] = record
        assert self._labs.begin(record)

    def finish(self, task_id: str, result: dict[str, Any]) -> None:
        record = self._records.get(task_id, make_record(task_id=str(task_id)))
        self._labs.record(record, Ending("succeeded", result=result))

    def fail(self, task_id: str, category: Category, sentence: str) -> None:
        record = self._records.get(task_id, make_record(task_id=str(task_id)))
        self._labs.record(record, Ending("failed", category.value, sentence))

    def take_queues_away(self) -> None:
        self._broker.channel().queue_delete(topology.QUEUE_NORMAL)


class InMemoryFace:
    def __init__(self, database: Database) -> None:
        self._dispatcher = InMemoryDispatcher(database=database.url)
        self.dispatcher: Dispatcher = self._dispatcher

    def received(self, count: int) -> list[TaskMessage]:
        assert len(self._dispatcher.sent) == count
        return sorted(self._dispatcher.sent, key=lambda task: task.name)

    def start(self, task_id: str) -> None:
        self._dispatcher.start(task_id)

    def finish(self, task_id: str, result: dict[str, Any]) -> None:
        self._dispatcher.finish(task_id, result=result)

    def fail(self, task_id: str, category: Category, sentence: str) -> None:
        self._dispatcher.fail(task_id, category=category.value, message=sentence)

    def take_queues_away(self) -> None:
        self._dispatcher.publisher.fail_with = Unroutable


@pytest.fixture(params=["real", "in memory"])
def face(request: pytest.FixtureRequest, database: Database) -> Iterator[Face]:
    face: Face
    if request.param == "real":
        face = RealFace(request.getfixturevalue("broker"), database, request.getfixturevalue("labs"))
    else:
        face = InMemoryFace(database)
    with face.dispatcher:
        yield face


@pytest.fixture
def dispatcher(face: Face) -> Dispatcher:
    return face.dispatcher


def test_sends_return_the_id_under_which_the_task_travels(face: Face, dispatcher: Dispatcher) -> None:
    create_id = dispatcher.create_lab(**create_kwargs(resources={"cpu": "1"}))
    delete_id = dispatcher.delete_lab(lab_instance_id=5, force=True, task_id="my-own-id")
    by_name = dispatcher.send_task(CREATE_LAB_POD, [1, 2, 3, IMAGE])
    tasks = {task.id: task for task in face.received(3)}
    assert set(tasks) == {create_id, delete_id, by_name}
    assert delete_id == "my-own-id"
    assert tasks[create_id].kwargs["resources"] == {"cpu": "1"}
    assert tasks[delete_id].name == DELETE_LAB_POD
    assert tasks[by_name].kwargs["docker_image"] == IMAGE
    assert not tasks[create_id].ignore_result


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"lab_instance_id": 0}, "lab_instance_id"),
        ({"docker_image": "no image!"}, "docker_image"),
        ({"resources": {"gpu": "1"}}, "resources"),
        ({"task_id": ""}, "task_id"),
        ({"task_id": "x" * 256}, "task_id"),
        ({"countdown": 5, "eta": datetime(2030, 1, 1, tzinfo=timezone.utc)}, "countdown"),
        ({"countdown": "5"}, "countdown"),
        ({"countdown": float("nan")}, "countdown"),
        ({"countdown": 2**28}, "countdown"),
        ({"eta": datetime(2030, 1, 1)}, "eta"),  # noqa: DTZ001
        ({"expires": True}, "expires"),
    ],
    ids=str,
)
def test_a_bad_argument_is_refused_by_name_and_nothing_is_sent(
    face: Face, dispatcher: Dispatcher, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidTask) as caught:
        dispatcher.create_lab(**{**create_kwargs(), **changes})
    assert caught.value.field.startswith(field)
    assert face.received(0) == []


def test_other_resources_are_asked_for_in_the_queue_of_stops(face: Face, dispatcher: Dispatcher) -> None:
    given = {"cpu": "1", "memory": "1Gi"}
    sent = dispatcher.scale_lab(lab_instance_id=7, new_resources=given)
    (task,) = face.received(1)
    assert (task.id, task.name) == (sent, SCALE_LAB_RESOURCES)
    assert task.kwargs == {"lab_instance_id": 7, "new_resources": given}
    for wrong in ({}, {"storage": "2Gi"}, {"cpu": 1}, ["cpu"]):
        with pytest.raises(InvalidTask, match="new_resources"):
            dispatcher.scale_lab(lab_instance_id=7, new_resources=wrong)  # type: ignore[arg-type]


def test_many_tasks_are_reported_one_by_one(face: Face, dispatcher: Dispatcher) -> None:
    payloads = [CreateLabPod(**create_kwargs(lab_instance_id=n)) for n in range(1, 40)]
    results = dispatcher.send_many(
        [*payloads, TaskRequest(DeleteLabPod(lab_instance_id=7), task_id="stop-7")]
    )
    assert all(result.ok for result in results)
    assert results[-1].task_id == "stop-7"
    received = {task.id: task.kwargs["lab_instance_id"] for task in face.received(40)}
    assert [received[result.task_id] for result in results] == [*range(1, 40), 7]


def test_many_tasks_are_checked_before_any_is_sent(face: Face, dispatcher: Dispatcher) -> None:
    good = CreateLabPod(**create_kwargs())
    with pytest.raises(InvalidTask, match="same for two tasks"):
        dispatcher.send_many([TaskRequest(good, task_id="a"), TaskRequest(good, task_id="a")])
    with pytest.raises(InvalidTask, match="payload"):
        dispatcher.send_many([good, "celery_workers.create_lab_pod"])  # type: ignore[list-item]
    assert face.received(0) == []


def test_no_tasks_are_no_results(dispatcher: Dispatcher) -> None:
    assert dispatcher.send_many([]) == []


def test_what_has_no_queue_is_unroutable(face: Face, dispatcher: Dispatcher) -> None:
    face.take_queues_away()
    with pytest.raises(Unroutable) as caught:
        dispatcher.create_lab(**create_kwargs(), task_id="lost")
    assert caught.value.task_id == "lost"
    (result,) = dispatcher.send_many([TaskRequest(CreateLabPod(**create_kwargs()), task_id="lost-too")])
    assert (result.task_id, result.ok) == ("lost-too", False)
    assert isinstance(result.error, Unroutable)


def test_a_task_that_expires_says_so(face: Face, dispatcher: Dispatcher) -> None:
    before = datetime.now(timezone.utc)
    dispatcher.create_lab(**create_kwargs(), expires=600)
    (task,) = face.received(1)
    assert task.expires is not None
    assert before <= task.expires - timedelta(seconds=600) <= datetime.now(timezone.utc)


def test_the_outbox_is_published_by_the_call_after_the_commit(
    face: Face, dispatcher: Dispatcher, database: Database
) -> None:
    engine = make_engine(database.url, application_name="test-backend")
    with engine.begin() as connection:
        task_id = outbox.add(connection, CreateLabPod(**create_kwargs()))
    with engine.connect() as connection:
        outbox.add(connection, DeleteLabPod(lab_instance_id=1))
        connection.rollback()
    engine.dispose()
    assert dispatcher.relay_outbox().published == (task_id,)
    assert dispatcher.relay_outbox().published == ()
    assert [task.id for task in face.received(1)] == [task_id]


def test_rows_of_the_outbox_that_nobody_checked_are_reported_and_not_raised(
    dispatcher: Dispatcher, database: Database
) -> None:
    """What a backend in another language may insert; the encoded `[[], {…}, {…}]` is longer than the row."""
    add = "INSERT INTO task_outbox (task_id, task_name, kwargs) VALUES"
    database.rows(f"{add} (E'odd\\nid', 't', '{{}}')")
    database.rows(f"{add} ('large', 't', jsonb_build_object('a', repeat('x', 1048560)))")
    database.rows(f"{add} ('fine', '{DELETE_LAB_POD}', '{{\"lab_instance_id\": 1}}')")
    report = dispatcher.relay_outbox()
    assert report.published == ("odd\nid", "fine")
    assert list(report.failed) == ["large"]
    assert "at most 1048576 are read" in report.failed["large"]


def test_the_life_of_a_task_is_told_as_celery_tells_it(face: Face, dispatcher: Dispatcher) -> None:
    handle = dispatcher.create_lab(**create_kwargs())
    assert (handle.state, handle.ready(), handle.result) == ("PENDING", False, None)
    face.start(handle)
    assert (handle.status, handle.ready()) == ("STARTED", False)
    face.finish(handle, {"status": "RUNNING"})
    assert (handle.state, handle.successful(), handle.failed()) == ("SUCCESS", True, False)
    assert handle.get(timeout=1) == handle.result == {"status": "RUNNING"}
    assert dispatcher.status(handle).state is TaskState.SUCCESS
    assert dispatcher.wait(handle, 1).result == {"status": "RUNNING"}


def test_a_failed_task_raises_its_sentence(face: Face, dispatcher: Dispatcher) -> None:
    handle = dispatcher.AsyncResult("sent-by-another-process")
    face.fail(handle, Category.PERMANENT_IMAGE_ERROR, "The image does not exist.")
    assert (handle.state, handle.failed(), handle.ready()) == ("FAILURE", True, True)
    with pytest.raises(TaskFailed, match=r"The image does not exist\. \[PERMANENT_IMAGE_ERROR\]"):
        handle.get()
    assert isinstance(handle.get(propagate=False), TaskFailed)
    assert isinstance(handle.result, TaskFailed)


def test_waiting_ends_when_the_task_does(face: Face, dispatcher: Dispatcher) -> None:
    handle = dispatcher.create_lab(**create_kwargs())
    timer = threading.Timer(0.3, face.finish, (handle, {"a": 1}))
    timer.start()
    assert handle.get(timeout=HANG_S) == {"a": 1}
    timer.join()


def test_a_handle_answers_as_celerys_does_without_a_timeout(face: Face, dispatcher: Dispatcher) -> None:
    handle = dispatcher.create_lab(**create_kwargs())
    face.finish(handle, {"a": 1})
    assert handle.get(timeout=None) == handle.info == {"a": 1}
    assert dispatcher.wait(handle, None).result == {"a": 1}


def test_waiting_is_bounded(dispatcher: Dispatcher) -> None:
    handle = dispatcher.create_lab(**create_kwargs())
    with pytest.raises(TaskTimeout, match=r"is PENDING after 0\.2 s"):
        handle.get(timeout=0.2)
    with pytest.raises(TimeoutError):
        dispatcher.wait(handle, 0)


def test_a_cancelled_task_is_revoked(dispatcher: Dispatcher) -> None:
    handle = dispatcher.create_lab(**create_kwargs())
    assert handle.revoke()
    assert dispatcher.cancel(handle).state is TaskState.REVOKED
    assert handle.state == "REVOKED"
    with pytest.raises(TaskRevoked, match=handle.id):
        handle.get()


def test_a_task_that_has_begun_cannot_be_cancelled(face: Face, dispatcher: Dispatcher) -> None:
    handle = dispatcher.create_lab(**create_kwargs())
    face.start(handle)
    assert not handle.revoke()
    face.finish(handle, {})
    assert dispatcher.cancel(handle).state is TaskState.SUCCESS


def test_a_handle_is_a_text_wherever_one_is_needed(dispatcher: Dispatcher, database: Database) -> None:
    handle = dispatcher.AsyncResult("some-id")
    assert isinstance(handle, TaskHandle)
    assert type(handle.id) is type(str(handle)) is type(f"{handle}") is str
    assert json.dumps({"task_id": handle}) == '{"task_id": "some-id"}'
    for copied in (pickle.loads(pickle.dumps(handle)), copy.deepcopy(handle)):
        assert (copied, type(copied)) == ("some-id", str)
    lab = database.add_lab(celery_task_id=handle)
    assert database.lab(lab)["celery_task_id"] == "some-id"


def test_a_countdown_keeps_the_task_on_the_broker(broker: Broker) -> None:
    with Dispatcher(broker.url) as dispatcher:
        dispatcher.create_lab(**create_kwargs(), countdown=2, task_id="later")
        dispatcher.send_many([TaskRequest(CreateLabPod(**create_kwargs()), countdown=600)])
    assert broker.depth(topology.QUEUE_NORMAL) == 0
    message = broker.take(topology.QUEUE_NORMAL, timeout_s=HANG_S)
    assert message.headers["id"] == "later"
    # A wait of the message's own length must be over: it never comes early.
    assert datetime.now(timezone.utc) >= datetime.fromisoformat(message.headers["eta"])
    eventually(lambda: broker.depth(delay_ladder.level_name(9)) == 1, what="the other on the rung of 512 s")


def test_a_forked_child_goes_on_with_connections_of_its_own(broker: Broker, database: Database) -> None:
    with Dispatcher(broker.url, database=database.url) as dispatcher:
        dispatcher.create_lab(**create_kwargs(), task_id="parent-1")
        assert dispatcher.status("parent-1").state is TaskState.PENDING
        child = os.fork()
        if child == 0:  # the child must not run any of pytest's clean-up
            try:
                sent = dispatcher.create_lab(**create_kwargs(), task_id="child")
                os._exit(0 if sent.state == "PENDING" else 2)
            except BaseException:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert dispatcher.create_lab(**create_kwargs(), task_id="parent-2").state == "PENDING"
    assert broker.depth(topology.QUEUE_NORMAL) == 3


def test_a_dispatcher_in_memory_leaves_the_real_outbox_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.url)
    database.rows("INSERT INTO task_outbox (task_name) VALUES ('celery_workers.cleanup_timeout_labs')")
    dispatcher = InMemoryDispatcher()
    assert dispatcher.relay_outbox().published == ()
    assert dispatcher.sent == []
    assert len(database.rows("SELECT id FROM task_outbox")) == 1
