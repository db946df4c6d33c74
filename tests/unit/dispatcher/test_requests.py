from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from dispatcher import DeleteLabPod, InvalidTask, TaskRequest

NOW = datetime.now(timezone.utc)


@pytest.mark.parametrize(
    ("options", "field", "expected"),
    [
        ({"countdown": -1}, "countdown", "0 seconds or more"),
        ({"expires": -3}, "expires", "0 seconds or more"),
        ({"expires": NOW - timedelta(seconds=1)}, "expires", "is over before"),
        ({"countdown": 10, "expires": 5}, "expires", "is over before"),
        ({"eta": NOW + timedelta(days=2), "expires": NOW + timedelta(days=1)}, "expires", "is over before"),
    ],
)
def test_times_that_can_never_be_met_are_refused(options: dict[str, Any], field: str, expected: str) -> None:
    with pytest.raises(InvalidTask, match=expected) as caught:
        TaskRequest(DeleteLabPod(lab_instance_id=1), **options).to_message()
    assert caught.value.field == field


def test_a_countdown_counts_from_the_call() -> None:
    before = datetime.now(timezone.utc)
    message = TaskRequest(DeleteLabPod(lab_instance_id=1), countdown=10, expires=20).to_message()
    assert message.eta is not None
    assert message.expires is not None
    assert before <= message.eta - timedelta(seconds=10) <= datetime.now(timezone.utc)
    assert message.expires - message.eta == pytest.approx(timedelta(seconds=10), abs=timedelta(seconds=1))
