"""Fixtures on a running platform (`make up`); every test makes labs of its own and takes them away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deploy.demo.platform import Platform, eventually
from deploy.demo.timeline import JobWatch
from tests.support.own_platform import own_namespace, own_platform  # noqa: F401  # fixtures


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
    """Labs of the test; those still there at its end are deleted."""
    started: list[int] = []
    yield started
    for lab_instance_id in started:
        if platform.lab(lab_instance_id).status != "STOPPED":
            platform.dispatcher.delete_lab(lab_instance_id=lab_instance_id, force=True)
    for lab_instance_id in started:
        platform.wait_for_status(lab_instance_id, "STOPPED")
        eventually(
            lambda lab=lab_instance_id: not platform.objects_of(lab),  # type: ignore[misc]
            timeout_s=30,
            what=f"objects of lab {lab_instance_id} gone",
        )


@pytest.fixture
def start_lab(platform: Platform, started: list[int]) -> Callable[..., tuple[int, str]]:
    """Start a lab as a backend does."""

    def start(**payload: Any) -> tuple[int, str]:
        lab_instance_id, task_id = platform.start_lab(**payload)
        started.append(lab_instance_id)
        return lab_instance_id, task_id

    return start
