"""What `autolabs explain` says of containers and of causes, which others decide."""

from __future__ import annotations

from console.explain.progress import LOG_KEPT_S
from console.explain.reason import BACKEND_FAILURES
from dispatcher.failure_contract import CONTAINER_DEADLINE_S
from keda.profiles import PROFILES
from keda.scaledjob import make_scaled_job


def test_numbers_and_names_of_other_packages_are_theirs() -> None:
    assert max(profile.active_deadline_s for profile in PROFILES) == CONTAINER_DEADLINE_S
    assert {failure.cause for failure in BACKEND_FAILURES} == {
        *("request_invalid", "follow_up_unsupported", "message_unreadable", "lab_unknown")
    }
    for profile in PROFILES:
        scaled_job = make_scaled_job(profile, image="image", env={})
        assert scaled_job["spec"]["jobTargetRef"]["ttlSecondsAfterFinished"] == LOG_KEPT_S
