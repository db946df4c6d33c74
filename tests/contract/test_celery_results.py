"""Our results against the real Celery: what its Redis backend stores, and what it makes of ours."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.exceptions import TaskRevokedError

from dispatcher.errors import TaskFailed
from dispatcher.message.celery_results import key_of, make_failure, make_meta, make_revoked, make_started
from dispatcher.task_status import TaskState

PARENTS = {"parent_id": "parent", "group_id": "group"}


@pytest.fixture
def backend() -> Any:
    """Celery's backend; nothing here needs its server."""
    return Celery("backend", backend="redis://127.0.0.1:1/0", set_as_current=False).backend


def stored_by_celery(backend: Any, state: TaskState, result: Any, *, parents: bool) -> dict[str, Any]:
    request = Context(id="t", children=[], **({"parent_id": "parent", "group": "group"} if parents else {}))
    meta = backend._get_result_meta(backend.encode_result(result, state.value), state.value, None, request)
    return dict(json.loads(backend.encode({**meta, "task_id": "t"})))


@pytest.mark.parametrize("parents", [False, True], ids=["alone", "in a group"])
@pytest.mark.parametrize(
    ("state", "celerys", "ours"),
    [
        (TaskState.STARTED, {"pid": 7, "hostname": "h"}, make_started("h", 7)),
        (TaskState.SUCCESS, {"lab_instance_id": 1, "url": None}, {"lab_instance_id": 1, "url": None}),
        (TaskState.FAILURE, TaskFailed("CATEGORY", "Sentence: ä."), make_failure("CATEGORY", "Sentence: ä.")),
        (TaskState.RETRY, TaskFailed("CATEGORY", "Sentence."), make_failure("CATEGORY", "Sentence.")),
        (TaskState.REVOKED, TaskRevokedError("Cancelled."), make_revoked("Cancelled.")),
    ],
)
def test_what_we_store_is_what_celery_stores(
    backend: Any, state: TaskState, celerys: Any, ours: Any, parents: bool
) -> None:
    theirs = stored_by_celery(backend, state, celerys, parents=parents)
    made = json.loads(make_meta("t", state, ours, **(PARENTS if parents else {})))
    assert list(made) == list(theirs)
    dates = [found.pop("date_done") for found in (made, theirs)]
    assert made == theirs
    assert [type(date) for date in dates] == [str if state.ready else type(None)] * 2
    assert key_of("t") == backend.get_key_for_task("t").decode()


def test_our_states_are_celerys(backend: Any) -> None:
    assert {s for s in TaskState if s.ready} == {TaskState(name) for name in backend.READY_STATES}


def test_celery_makes_our_exceptions_of_what_we_store(backend: Any) -> None:
    failed = backend.decode_result(make_meta("t", TaskState.FAILURE, make_failure("CATEGORY", "Sentence.")))
    error = failed["result"]
    assert type(error) is TaskFailed
    assert (error.category, error.message, str(error)) == ("CATEGORY", "Sentence.", "Sentence. [CATEGORY]")
    revoked = backend.decode_result(make_meta("t", TaskState.REVOKED, make_revoked("Cancelled.")))
    assert type(revoked["result"]) is TaskRevokedError
    assert str(revoked["result"]) == "Cancelled."


def test_a_failure_can_be_pickled() -> None:
    again = pickle.loads(pickle.dumps(TaskFailed("CATEGORY", "Sentence.")))
    assert (type(again), again.category, again.message) == (TaskFailed, "CATEGORY", "Sentence.")
