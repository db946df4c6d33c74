"""Labs are started and stopped by containers whose clocks are wrong, in both directions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta

import pytest

from tests.support.clearing import clear
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.containers.skewed_clock import SkewedContainers
from tests.support.outages.loop import LABS, Backend, Loop, Place
from tests.support.outages.row import HEADER, Row, go_through

SKEWS = [timedelta(hours=1), timedelta(hours=-1)]


@pytest.fixture
def loop(own_platform: OwnPlatform) -> Iterator[Loop]:
    place = Place(
        amqp_url=own_platform.broker.url,
        database_url=own_platform.database.url,
        namespace=own_platform.namespace.name,
        cluster=own_platform.namespace.cluster,
        image=os.environ["LAB_IMAGE"],
        environ={**own_platform.containers.environ, "KUBECONFIG": os.environ["KUBECONFIG"]},
    )
    backend = Backend(place)
    loop = Loop(backend, student_id=1)
    yield loop
    loop.leave()
    backend.close()
    # Its labs too: another loop of this student would take them for its own.
    clear(own_platform)


@pytest.mark.timeout(400)
def test_wrong_clocks_lose_and_double_no_lab(own_platform: OwnPlatform, loop: Loop) -> None:
    row = Row("clocks of jobs wrong", note="by +1 h and -1 h, in turn")
    with SkewedContainers(own_platform.containers, SKEWS) as skewed:
        go_through(row, loop, lambda: None)
        loop.clear()
    print(f"{HEADER}\n{row.line()}")
    seen = skewed.seen_skews()
    assert len(seen) >= LABS
    assert [found for wanted, found in seen if abs(found - wanted) > timedelta(minutes=2)] == []
