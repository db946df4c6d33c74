from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import jobs.database
import jobs.database.connection
from dispatcher.failure_contract import Category
from jobs.database.connection import Cursor
from jobs.database.lab_store import LabStore
from jobs.database.ledger import Ending
from jobs.errors import PermanentError, TransientError
from jobs.failures import Failure
from tests.support.broker.tcp_proxy import TcpProxy
from tests.support.database.postgres import Database
from tests.support.factories import make_record
from tests.support.waiting import HANG_S, ends_within

ERROR = PermanentError(Failure.IMAGE_NOT_LOADABLE, "The image is wrong.", evidence="ErrImagePull")


@pytest.fixture
def proxy(database: Database) -> Iterator[TcpProxy]:
    with TcpProxy.to(database.url) as proxy:
        yield proxy


@pytest.fixture
def far_labs(database: Database, proxy: TcpProxy) -> Iterator[LabStore]:
    """A store whose connection goes through the proxy, unencrypted so that statements can be seen."""
    store = LabStore(proxy.through(database.url) + "?sslmode=disable", application_name="far")
    yield store
    store.close()


def run(labs: LabStore, lab: int) -> bool:
    return labs.mark_running(make_record(lab), lab, pod_name="pod", connection_url="http://x/")


def test_a_pending_lab_becomes_running_with_its_ledger_row(database: Database, labs: LabStore) -> None:
    lab = database.add_lab()
    record = make_record(lab, task_id="t-1")
    assert labs.mark_running(record, lab, pod_name="pod", connection_url="http://x/")
    row = database.lab(lab)
    assert (row["status"], row["k8s_pod_name"], row["connection_url"]) == ("RUNNING", "pod", "http://x/")
    assert row["celery_task_id"] == "t-1"
    assert row["started_at"] is not None
    (entry,) = database.ledger()
    assert (entry["task_id"], entry["lab_instance_id"], entry["outcome"]) == ("t-1", lab, "succeeded")
    assert entry["claimed_at"] <= entry["finished_at"]


def test_the_backends_task_id_is_kept(database: Database, labs: LabStore) -> None:
    lab = database.add_lab(celery_task_id="the-backends")
    run(labs, lab)
    assert database.lab(lab)["celery_task_id"] == "the-backends"


def test_a_second_create_of_a_running_lab_is_a_noop(database: Database, labs: LabStore) -> None:
    lab = database.add_lab()
    assert [run(labs, lab), run(labs, lab)] == [True, True]
    assert database.outcomes() == ["succeeded", "noop"]


@pytest.mark.parametrize(
    "columns",
    [
        {"status": "FAILED"},
        {"status": "STOPPED"},
        {"status": "RUNNING", "k8s_pod_name": "another"},
        {"stop_requested_at": "now"},
    ],
    ids=repr,
)
def test_a_lab_that_is_not_wanted_does_not_become_running(
    database: Database, labs: LabStore, columns: dict[str, str]
) -> None:
    lab = database.add_lab(**columns)
    before = database.lab(lab)
    assert run(labs, lab) is False
    assert database.lab(lab) == before
    assert database.ledger() == []


def test_a_lab_without_a_row_does_not_become_running(database: Database, labs: LabStore) -> None:
    assert run(labs, 4711) is False
    assert labs.find(4711) is None


def test_many_creates_at_once_give_one_success(database: Database) -> None:
    lab = database.add_lab()

    def create() -> None:
        store = LabStore(database.url, application_name="racer")
        run(store, lab)
        store.close()

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert sorted(database.outcomes()) == ["noop"] * 5 + ["succeeded"]


def test_a_failure_is_told_in_the_row_and_the_ledger(database: Database, labs: LabStore) -> None:
    lab = database.add_lab()
    assert labs.mark_failed(make_record(lab), ERROR, outcome="failed")
    row = database.lab(lab)
    assert (row["status"], row["error_category"]) == ("FAILED", "PERMANENT_IMAGE_ERROR")
    assert row["error_message"] == "The image is wrong."
    assert row["failed_at"] is not None
    (entry,) = database.ledger()
    assert (entry["outcome"], entry["error_category"]) == ("failed", "PERMANENT_IMAGE_ERROR")
    assert entry["details"]["evidence"] == "ErrImagePull"


@pytest.mark.parametrize(
    "columns", [{"status": "RUNNING"}, {"status": "STOPPED"}, {"stop_requested_at": "now"}], ids=repr
)
def test_a_lab_that_is_further_on_does_not_become_failed(
    database: Database, labs: LabStore, columns: dict[str, str]
) -> None:
    lab = database.add_lab(**columns)
    before = database.lab(lab)
    assert labs.mark_failed(make_record(lab), ERROR, outcome="failed") is False
    assert database.lab(lab) == before
    assert database.outcomes() == ["failed"]


@pytest.mark.parametrize("text", ["nul \x00 in it", "lone \ud800 surrogate"])
def test_no_evidence_can_stop_the_ledger(database: Database, labs: LabStore, text: str) -> None:
    lab = database.add_lab()
    error = PermanentError(Failure.IMAGE_NOT_LOADABLE, f"Sentence {text}.", evidence=text)
    assert labs.mark_failed(make_record(lab), error, outcome="failed")
    assert database.lab(lab)["error_message"].startswith("Sentence ")


def test_a_stop_before_the_create_wins(database: Database, labs: LabStore) -> None:
    lab = database.add_lab()
    found = labs.request_stop(lab)
    assert found is not None
    assert found.stop_requested
    assert run(labs, lab) is False
    assert labs.mark_stopped(make_record(lab), lab, deleted=0)
    assert database.lab(lab)["status"] == "STOPPED"


def test_the_tombstone_is_set_once(database: Database, labs: LabStore) -> None:
    lab = database.add_lab()
    labs.request_stop(lab)
    first = database.lab(lab)["stop_requested_at"]
    labs.request_stop(lab)
    assert database.lab(lab)["stop_requested_at"] == first


def test_stopping_twice_is_a_noop(database: Database, labs: LabStore) -> None:
    lab = database.add_lab(status="RUNNING", connection_url="http://x/")
    assert labs.mark_stopped(make_record(lab), lab, deleted=3)
    assert labs.mark_stopped(make_record(lab), lab, deleted=0) is False
    assert database.lab(lab)["connection_url"] is None
    assert database.outcomes() == ["succeeded", "noop"]


def test_stopping_a_lab_without_a_row_leaves_its_ledger_row(database: Database, labs: LabStore) -> None:
    assert labs.request_stop(4711) is None
    assert labs.mark_stopped(make_record(4711), 4711, deleted=0) is False
    assert database.outcomes() == ["noop"]


def test_a_session_that_the_server_ended_is_replaced(database: Database, labs: LabStore) -> None:
    lab = database.add_lab()
    assert labs.find(lab) is not None
    assert database.terminate("test-labs") == 1
    assert run(labs, lab)
    assert database.outcomes() == ["succeeded"]


def test_a_server_that_became_read_only_is_left_for_one_that_is_not(
    database: Database, labs: LabStore
) -> None:
    lab = database.add_lab()
    labs.transaction(lambda cursor: cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"))
    assert run(labs, lab)
    assert database.lab(lab)["status"] == "RUNNING"
    assert database.outcomes() == ["succeeded"]


def test_a_server_that_stays_read_only_is_transient(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.database.connection, "BLIP_S", 0.3)
    lab = database.add_lab()
    url = f"{database.url}?options=-cdefault_transaction_read_only%3Don"
    labs = LabStore(url, application_name="test-read-only")
    with pytest.raises(TransientError) as caught:
        run(labs, lab)
    labs.close()
    assert caught.value.category is Category.TEMPORARY_NETWORK_ERROR
    assert "read-only" in caught.value.evidence


@pytest.mark.parametrize(
    ("statement", "evidence"),
    [
        ("DROP TABLE task_ledger", "UndefinedTable"),
        ("ALTER TABLE task_ledger DROP COLUMN details", "UndefinedColumn"),
        ("ALTER TABLE task_ledger ADD CONSTRAINT no CHECK (outcome = 'x')", "CheckViolation"),
    ],
)
def test_a_database_that_refuses_is_the_administrators_to_correct_and_changes_nothing(
    database: Database, labs: LabStore, statement: str, evidence: str
) -> None:
    lab = database.add_lab()
    database.rows(statement)
    with pytest.raises(PermanentError) as caught:
        run(labs, lab)
    assert caught.value.category is Category.PERMANENT_PERMISSION_ERROR
    assert caught.value.evidence.startswith(evidence)
    with pytest.raises(PermanentError, match=evidence):
        labs.mark_failed(make_record(lab), ERROR, outcome="failed")
    assert database.lab(lab)["status"] == "PENDING"
    assert labs.find(lab) is not None


def test_a_lost_answer_to_a_commit_leaves_one_change(
    database: Database, far_labs: LabStore, proxy: TcpProxy
) -> None:
    lab = database.add_lab()
    assert far_labs.find(lab) is not None
    commits: list[bytes] = []

    def first_commit(data: bytes) -> bool:
        if b"COMMIT" not in data or commits:
            return False
        commits.append(data)
        return True

    proxy.swallow_answer_to = first_commit
    assert run(far_labs, lab)
    assert len(commits) == 1
    assert proxy.accepted == 2
    assert database.lab(lab)["status"] == "RUNNING"
    assert database.outcomes() == ["succeeded"]


def test_a_lost_answer_to_a_begin_leaves_one_run(
    database: Database, far_labs: LabStore, proxy: TcpProxy
) -> None:
    lab = database.add_lab()
    record = make_record(lab)
    assert far_labs.find(lab) is not None
    begins: list[bytes] = []

    def first_begin(data: bytes) -> bool:
        if b"pg_advisory_xact_lock" not in data or begins:
            return False
        begins.append(data)
        # Too late for this run, although its answer is still under way.
        return True

    proxy.swallow_answer_to = first_begin
    assert far_labs.begin(record)
    assert proxy.accepted == 2
    assert [(str(run["run_id"]), run["outcome"]) for run in database.ledger()] == [(record.run_id, "started")]


def test_a_run_that_began_stays_begun_though_it_is_cancelled_before_its_answer_is_repeated(
    database: Database, labs: LabStore
) -> None:
    record = make_record(None)
    assert labs.begin(record)
    database.rows("INSERT INTO task_cancellations (task_id) VALUES (%s)", record.task_id)
    assert labs.begin(record)
    assert not labs.begin(make_record(None, task_id=record.task_id))
    assert database.outcomes() == ["started"]


def test_a_run_has_one_row_from_its_beginning_to_its_end(database: Database, labs: LabStore) -> None:
    lab = database.add_lab()
    record = make_record(lab)
    assert labs.begin(record)
    (started,) = database.ledger()
    assert (started["outcome"], started["finished_at"]) == ("started", None)
    assert labs.mark_running(record, lab, pod_name="pod", connection_url="http://x/")
    (ended,) = database.ledger()
    assert ended["claimed_at"] == started["claimed_at"] <= ended["finished_at"]
    assert (ended["id"], ended["outcome"]) == (started["id"], "succeeded")
    assert ended["details"]["result"] == {
        "lab_instance_id": lab,
        "status": "RUNNING",
        "k8s_pod_name": "pod",
        "connection_url": "http://x/",
    }


def test_the_first_ending_of_a_run_stands(database: Database, labs: LabStore) -> None:
    record = make_record(None)
    labs.record(record, Ending("succeeded", result={"n": 1}))
    labs.record(record, Ending.of_error("retried", ERROR))
    (run_row,) = database.ledger()
    assert (run_row["outcome"], run_row["error_message"], run_row["details"]["result"]) == (
        "succeeded",
        None,
        {"n": 1},
    )


def test_a_container_of_an_earlier_version_still_writes_its_row(database: Database) -> None:
    database.rows(
        "INSERT INTO task_ledger (task_id, task_name, attempt, redelivered, queue, claimed_at, finished_at,"
        " outcome) VALUES ('t', 'n', 1, false, 'q', now(), now(), 'succeeded')"
    )
    (row,) = database.ledger()
    assert row["run_id"] is not None


def test_a_cancelled_pending_lab_is_stopped_and_says_so(database: Database, labs: LabStore) -> None:
    lab = database.add_lab()
    assert labs.mark_cancelled(make_record(lab), "The start was cancelled.")
    row = database.lab(lab)
    assert (row["status"], row["error_message"], row["error_category"]) == (
        "STOPPED",
        "The start was cancelled.",
        None,
    )
    assert row["stop_requested_at"] is not None
    assert row["stopped_at"] is not None
    (entry,) = database.ledger()
    assert (entry["outcome"], entry["error_message"]) == ("revoked", "The start was cancelled.")


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "STOPPED"])
def test_a_lab_that_is_further_on_is_not_cancelled(database: Database, labs: LabStore, status: str) -> None:
    lab = database.add_lab(status=status)
    before = database.lab(lab)
    assert labs.mark_cancelled(make_record(lab), "x") is False
    assert database.lab(lab) == before
    assert database.outcomes() == ["revoked"]


def test_what_the_url_sets_for_the_session_stays(database: Database) -> None:
    database.rows("CREATE SCHEMA foo")
    url = f"{database.url}?options=-csearch_path%3Dfoo%20-cstatement_timeout%3D0"
    store = LabStore(url, application_name="test-options")

    def show(cursor: Cursor) -> list[str]:
        names = ("search_path", "statement_timeout", "default_transaction_isolation")
        values = []
        for name in names:
            cursor.execute("SELECT current_setting(%s)", (name,))
            (value,) = cursor.fetchone() or ("",)
            values.append(value)
        return values

    assert store.transaction(show) == ["foo", "10s", "read committed"]
    store.close()


def test_a_database_that_stays_away_is_transient(
    database: Database, far_labs: LabStore, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.database.connection, "BLIP_S", 0.5)
    lab = database.add_lab()
    far_labs.find(lab)
    proxy.close()
    with ends_within(), pytest.raises(TransientError) as caught:
        run(far_labs, lab)
    assert caught.value.category is Category.TEMPORARY_NETWORK_ERROR
