"""status, wait and cancel of the dispatcher against what containers write, race by race."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import create_engine

from dispatcher.errors import DispatcherError, InvalidTask, TaskTimeout
from dispatcher.results import ResultStore, TaskState, TaskStatus
from jobs.database.lab_store import LabStore
from jobs.database.ledger import Ending
from jobs.errors import PermanentError
from jobs.failures import Failure
from tests.support.broker.tcp_proxy import TcpProxy
from tests.support.database.postgres import Database
from tests.support.factories import make_record
from tests.support.waiting import HANG_S, ends_within, eventually

ERROR = PermanentError(Failure.IMAGE_NOT_LOADABLE, "The image is wrong.")
DONE = Ending("succeeded", result={"n": 1})
NOOP = Ending("noop", result={"n": 2})
FAILED = Ending.of_error("failed", ERROR)
RETRIED = Ending.of_error("retried", ERROR)
STARTED = None
DEAD = Ending.of_error("dead_lettered", ERROR)
REVOKED = Ending("revoked", error_message="Cancelled.")


@pytest.fixture
def results(database: Database) -> Iterator[ResultStore]:
    store = ResultStore(database.url)
    yield store
    store.close()


def flags(database: Database) -> list[str]:
    return [row["task_id"] for row in database.rows("SELECT task_id FROM task_cancellations")]


def run_all(labs: LabStore, task_id: str, endings: list[Ending | None]) -> None:
    for attempt, ending in enumerate(endings, 1):
        record = make_record(7, task_id=task_id, attempt=attempt)
        assert labs.begin(record)
        if ending:
            labs.record(record, ending)


@pytest.mark.parametrize(
    ("endings", "state"),
    [
        ([], TaskState.PENDING),
        ([STARTED], TaskState.STARTED),
        ([RETRIED], TaskState.RETRY),
        ([DONE], TaskState.SUCCESS),
        ([NOOP], TaskState.SUCCESS),
        ([FAILED], TaskState.FAILURE),
        ([DEAD], TaskState.FAILURE),
        ([REVOKED], TaskState.REVOKED),
        ([STARTED, STARTED], TaskState.STARTED),
        ([STARTED, DONE], TaskState.SUCCESS),
        ([DONE, NOOP], TaskState.SUCCESS),
        ([DONE, STARTED], TaskState.SUCCESS),
        ([DONE, FAILED], TaskState.SUCCESS),
        ([RETRIED, STARTED], TaskState.STARTED),
        ([RETRIED, RETRIED, FAILED], TaskState.FAILURE),
        ([FAILED, DONE], TaskState.SUCCESS),
        ([STARTED, RETRIED], TaskState.RETRY),
        ([FAILED, NOOP], TaskState.FAILURE),
        ([DEAD, NOOP], TaskState.FAILURE),
        ([REVOKED, NOOP], TaskState.REVOKED),
        ([FAILED, STARTED], TaskState.FAILURE),
        ([DEAD, RETRIED], TaskState.FAILURE),
        ([DEAD, STARTED, DONE], TaskState.SUCCESS),
        ([NOOP, STARTED], TaskState.SUCCESS),
        ([NOOP, FAILED], TaskState.SUCCESS),
        ([RETRIED, NOOP], TaskState.SUCCESS),
    ],
    ids=lambda value: "+".join(e.outcome if e else "started" for e in value) if type(value) is list else None,
)
def test_the_runs_of_a_task_give_its_state(
    labs: LabStore, results: ResultStore, endings: list[Ending | None], state: TaskState
) -> None:
    run_all(labs, "t", endings)
    run_all(labs, "another", [FAILED])
    status = results.status("t")
    assert (status.task_id, status.state, status.ready) == ("t", state, state.ready)
    success = {"n": 1} if DONE in endings else {"n": 2}
    assert status.result == (success if state is TaskState.SUCCESS else None)


def test_a_status_tells_what_the_ledger_knows(
    database: Database, labs: LabStore, results: ResultStore
) -> None:
    record = make_record(7, attempt=2)
    labs.begin(record)
    labs.record(record, FAILED)
    status = results.status(record.task_id)
    (row,) = database.ledger()
    assert (status.task_name, status.lab_instance_id, status.attempt) == (record.task_name, 7, 2)
    assert (status.outcome, status.error_category) == ("failed", "PERMANENT_IMAGE_ERROR")
    assert status.error_message == "The image is wrong."
    assert (status.published_at, status.started_at) == (record.published_at, row["claimed_at"])
    assert status.finished_at == row["finished_at"]


def test_the_result_is_that_of_the_first_success(labs: LabStore, results: ResultStore) -> None:
    slow, quick, again = (make_record(7, task_id="t") for _ in range(3))
    for record in (slow, quick):
        labs.begin(record)
    for number, record in enumerate((quick, slow, again)):
        labs.record(record, Ending("succeeded", result={"n": number}))
    assert results.status("t").result == {"n": 0}


def test_a_cancel_before_the_first_run_is_in_time(
    database: Database, labs: LabStore, results: ResultStore
) -> None:
    assert [results.cancel("t").state for _ in range(2)] == [TaskState.REVOKED] * 2
    assert flags(database) == ["t"]
    assert results.status("t").ready
    assert not labs.begin(make_record(7, task_id="t"))
    assert database.ledger() == []


def test_a_cancel_between_two_attempts_is_in_time(labs: LabStore, results: ResultStore) -> None:
    run_all(labs, "t", [RETRIED])
    assert results.cancel("t").state is TaskState.REVOKED
    assert not labs.begin(make_record(7, task_id="t", attempt=2))


def test_a_cancel_of_a_task_under_way_is_too_late_for_it_but_not_for_the_next_attempt(
    labs: LabStore, results: ResultStore
) -> None:
    record = make_record(7, task_id="t")
    labs.begin(record)
    assert results.cancel("t").state is TaskState.STARTED
    assert results.status("t").state is TaskState.STARTED
    labs.record(record, RETRIED)
    assert results.status("t").state is TaskState.REVOKED
    assert not labs.begin(make_record(7, task_id="t", attempt=2))


@pytest.mark.parametrize(
    ("ending", "state"),
    [(DONE, TaskState.SUCCESS), (NOOP, TaskState.SUCCESS), (FAILED, TaskState.FAILURE)],
    ids=["done", "noop", "failed"],
)
def test_a_cancel_of_a_task_that_is_over_changes_nothing(
    database: Database, labs: LabStore, results: ResultStore, ending: Ending, state: TaskState
) -> None:
    run_all(labs, "t", [ending])
    assert results.cancel("t").state is state
    assert flags(database) == []


def test_of_a_begin_and_a_cancel_at_once_exactly_one_wins(database: Database, results: ResultStore) -> None:
    ids = [f"t-{number}" for number in range(60)]
    together = threading.Barrier(2)

    def begin_all() -> list[bool]:
        store = LabStore(database.url, application_name="racer")
        begun = []
        for task_id in ids:
            together.wait(HANG_S)
            begun.append(store.begin(make_record(7, task_id=task_id)))
        store.close()
        return begun

    def cancel_all() -> list[TaskState]:
        states = []
        for task_id in ids:
            together.wait(HANG_S)
            states.append(results.cancel(task_id).state)
        return states

    with ThreadPoolExecutor(2) as pool:
        begun, states = pool.submit(begin_all), pool.submit(cancel_all)
        pairs = set(zip(begun.result(2 * HANG_S), states.result(2 * HANG_S), strict=True))
    assert pairs <= {(True, TaskState.STARTED), (False, TaskState.REVOKED)}


def test_of_many_begins_and_cancels_at_once_no_two_contradict_each_other(
    database: Database, results: ResultStore
) -> None:
    ids = [f"t-{number}" for number in range(25)]
    together = threading.Barrier(8)

    def begin_all() -> list[str]:
        store = LabStore(database.url, application_name="racer")
        said = []
        for task_id in ids:
            together.wait(HANG_S)
            said.append("begun" if store.begin(make_record(7, task_id=task_id)) else "not begun")
        store.close()
        return said

    def cancel_all() -> list[str]:
        said = []
        for task_id in ids:
            together.wait(HANG_S)
            said.append(results.cancel(task_id).state.value)
        return said

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(work) for work in [begin_all, cancel_all] * 4]
        answers = [set(said) for said in zip(*(each.result(2 * HANG_S) for each in running), strict=True)]
    assert all(
        said <= {"begun", "not begun", "STARTED"} or said == {"not begun", "REVOKED"} for said in answers
    )


@pytest.mark.parametrize(
    "isolation_level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT"]
)
def test_a_cancel_that_waits_for_a_begin_sees_it_whatever_the_engines_isolation(
    database: Database, labs: LabStore, isolation_level: str
) -> None:
    url = database.url.replace("postgresql://", "postgresql+psycopg2://")
    engine = create_engine(url, isolation_level=isolation_level)
    store = ResultStore(engine)
    store.status("t")
    record = make_record(7, task_id="t")
    seen: list[TaskState] = []
    canceller = threading.Thread(target=lambda: seen.append(store.cancel("t").state))

    def begin_slowly(cursor: Any) -> None:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended('t', 0))")
        canceller.start()
        eventually(lambda: database.waits("locktype = 'advisory'"), what="the cancel waits")
        cursor.execute(
            "INSERT INTO task_ledger (task_id, task_name, attempt, redelivered, queue, claimed_at, outcome)"
            " VALUES (%s, 'n', 1, false, 'q', now(), 'started')",
            (record.task_id,),
        )

    labs.transaction(begin_slowly)
    canceller.join(HANG_S)
    assert seen == [TaskState.STARTED]
    engine.dispose()


def test_many_threads_share_one_store(labs: LabStore, results: ResultStore) -> None:
    run_all(labs, "t", [DONE])
    with ThreadPoolExecutor(16) as pool:
        states = {found.state for found in pool.map(results.status, ["t"] * 200)}
    assert states == {TaskState.SUCCESS}


def test_a_forked_child_uses_the_store_of_its_parent(labs: LabStore, results: ResultStore) -> None:
    run_all(labs, "t", [DONE])
    assert results.status("t").ready
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()
    children = [
        fork.Process(target=lambda: queue.put([results.status("t").state.value for _ in range(20)]))
        for _ in range(3)
    ]
    for child in children:
        child.start()
    ours = [results.status("t").state.value for _ in range(20)]
    theirs = [queue.get() for _ in children]
    for child in children:
        child.join(HANG_S)
    assert [ours, *theirs] == [["SUCCESS"] * 20] * 4
    assert [child.exitcode for child in children] == [0, 0, 0]


def test_wait_returns_when_the_task_is_over(database: Database, results: ResultStore) -> None:
    def run_late() -> None:
        store = LabStore(database.url, application_name="runner")
        record = make_record(7, task_id="t")
        store.begin(record)
        eventually(lambda: database.sessions("application_name LIKE %s", "auto%"), what="somebody who waits")
        store.record(record, DONE)
        store.close()

    thread = threading.Thread(target=run_late)
    thread.start()
    status = results.wait("t", HANG_S)
    thread.join(HANG_S)
    assert (status.state, status.result) == (TaskState.SUCCESS, {"n": 1})


def test_wait_gives_up_in_time_and_says_what_it_saw(labs: LabStore, results: ResultStore) -> None:
    labs.begin(make_record(7, task_id="t"))
    started = time.monotonic()
    with ends_within(), pytest.raises(TaskTimeout, match=r"task t is STARTED after 0\.4 s") as caught:
        results.wait("t", 0.4)
    assert time.monotonic() - started >= 0.4
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.status.state is TaskState.STARTED


def test_wait_of_nothing_looks_once(labs: LabStore, results: ResultStore) -> None:
    run_all(labs, "t", [FAILED])
    assert results.wait("t", 0).state is TaskState.FAILURE
    with pytest.raises(TaskTimeout):
        results.wait("unknown", 0)


@pytest.mark.parametrize("task_id", ["a\x00b", "\ud800", "x" * 256, ""], ids=repr)
def test_an_id_that_no_task_can_have_is_pending_and_cannot_be_cancelled(
    database: Database, results: ResultStore, task_id: str
) -> None:
    assert results.status(task_id) == TaskStatus(task_id=task_id, state=TaskState.PENDING)
    with pytest.raises(TaskTimeout) as timeout:
        results.wait(task_id, 0)
    assert timeout.value.status.state is TaskState.PENDING
    with pytest.raises(InvalidTask) as invalid:
        results.cancel(task_id)
    assert invalid.value.field == "task_id"
    assert flags(database) == []


def test_no_error_of_sqlalchemy_comes_through_nor_a_password(database: Database) -> None:
    database.rows("DROP TABLE task_ledger")
    url = "postgresql://u:hidden@127.0.0.1:1/db"
    for broken in (ResultStore(url), database.results):
        for call in (broken.status, broken.cancel, lambda task_id: broken.wait(task_id, 1)):  # noqa: B023
            with pytest.raises(DispatcherError) as caught:
                call("t")
            assert "hidden" not in str(caught.value)
    with pytest.raises(DispatcherError) as caught:
        ResultStore("no url :hidden@")
    assert "hidden" not in str(caught.value)


def test_a_database_that_came_back_is_used_again(database: Database, labs: LabStore) -> None:
    run_all(labs, "t", [DONE])
    with TcpProxy.to(database.url) as proxy:
        far = ResultStore(proxy.through(database.url))
        assert far.status("t").ready
        proxy.cut()
        assert far.status("t").ready
        far.close()
