"""Fixtures on a running platform (`make up`); every test makes labs of its own and takes them away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deploy.demo.platform import Platform
from deploy.demo.timeline import JobWatch
from tests.support.labs.taken_away import take_away


@pytest.fixture(scope="session")
def platform() -> Iterator[Platform]:
    platform = Platform()
    yield platform
    platform.close()


@pytest.fixture
def jobs(platform: Platform) -> Iterator[JobWatch]:
    with JobWatch(platform) as watch:
        yield watch


@pytest.fixture
def started(platform: Platform) -> Iterator[list[int]]:
    """Labs of the test; nothing of them is left at its end."""
    started: list[int] = []
    yield started
    take_away(platform, started)


@pytest.fixture(scope="session")
def running_lab(platform: Platform) -> Iterator[int]:
    """A RUNNING lab with the resources of the specification, for tests that only look at it."""
    lab, _ = platform.start_lab(resources={"cpu": "500m", "memory": "512Mi", "storage": "1Gi"})
    try:
        row = platform.wait_for_status(lab, "RUNNING", "FAILED")
        assert row.status == "RUNNING", row
        yield lab
    finally:
        take_away(platform, [lab])


@pytest.fixture
def start_lab(platform: Platform, started: list[int]) -> Callable[..., tuple[int, str]]:
    """Start a lab as a backend does."""

    def start(**payload: Any) -> tuple[int, str]:
        lab_instance_id, task_id = platform.start_lab(**payload)
        started.append(lab_instance_id)
        return lab_instance_id, task_id

    return start
