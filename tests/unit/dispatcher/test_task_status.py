from __future__ import annotations

import pytest

from dispatcher.models import Outcome
from dispatcher.task_status import STATE_OF_OUTCOME, TaskState, TaskStatus, state_of


def test_every_outcome_of_the_ledger_has_a_state() -> None:
    assert set(STATE_OF_OUTCOME) == {outcome.value for outcome in Outcome}


@pytest.mark.parametrize(
    ("outcome", "plain", "cancelled"),
    [
        (None, "PENDING", "REVOKED"),
        ("started", "STARTED", "STARTED"),
        ("retried", "RETRY", "REVOKED"),
        ("succeeded", "SUCCESS", "SUCCESS"),
        ("noop", "SUCCESS", "SUCCESS"),
        ("failed", "FAILURE", "FAILURE"),
        ("dead_lettered", "FAILURE", "FAILURE"),
        ("revoked", "REVOKED", "REVOKED"),
    ],
)
def test_a_cancellation_counts_only_where_nothing_is_begun(
    outcome: str | None, plain: str, cancelled: str
) -> None:
    assert state_of(outcome, cancelled=False).value == plain
    assert state_of(outcome, cancelled=True).value == cancelled


@pytest.mark.parametrize("state", TaskState)
def test_a_status_is_ready_when_its_state_is_final(state: TaskState) -> None:
    assert TaskStatus(task_id="t", state=state).ready is (state.value in ("SUCCESS", "FAILURE", "REVOKED"))


def test_a_state_is_written_as_celery_writes_it() -> None:
    assert f"{TaskState.SUCCESS} {TaskState.REVOKED!s}" == "SUCCESS REVOKED"
