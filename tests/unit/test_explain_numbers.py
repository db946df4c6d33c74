"""What `autolabs explain` knows of packages that it may not import."""

from __future__ import annotations

from console.explain.progress import LOG_KEPT_S
from console.explain.reason import BACKEND_CAUSES
from dispatcher.limits import CONTAINER_DEADLINE_S
from jobs.failures import Failure
from keda.profiles import PROFILES
from keda.scaledjob import make_scaled_job


def test_numbers_and_names_of_other_packages_are_theirs() -> None:
    assert max(profile.active_deadline_s for profile in PROFILES) == CONTAINER_DEADLINE_S
    assert {failure.cause for failure in Failure} >= BACKEND_CAUSES
    for profile in PROFILES:
        scaled_job = make_scaled_job(profile, image="image", env={})
        assert scaled_job["spec"]["jobTargetRef"]["ttlSecondsAfterFinished"] == LOG_KEPT_S
