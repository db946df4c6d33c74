"""Labs are started and stopped in a loop while one part of the platform is away.

Every lab ends as it was asked to, or FAILED with a reason that names the outage; none is lost, none is
doubled, and `autolabs verify` finds nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from deploy.demo.platform import LABS as LAB_NAMESPACE
from tests.support import outages
from tests.support.outage_loop import LABS, Loop, Outcome, Place, differences, look
from tests.support.own_platform import OwnPlatform
from tests.support.skewed_clock import SkewedContainers
from tests.support.waiting import eventually, eventually_equal

pytestmark = pytest.mark.skipif(
    os.environ.get("CLUSTER") == "existing", reason="the parts of another cluster are not ours to end"
)

#: Requests after which the outage begins.
BEGIN_AFTER = 4
#: Seconds after an outage; three retries take at most 35.
RIGHT_S = 180.0


@dataclass
class Row:
    """One line of the table that is printed at the end."""

    outage: str
    away_s: float = 0.0
    right_s: float | None = None
    outcome: Outcome = field(default_factory=Outcome)
    note: str = ""

    def line(self) -> str:
        seen = self.outcome
        failed = f"{len(seen.failed)} {'+'.join(sorted(set(seen.failed)))}".strip()
        right = "never" if self.right_s is None else f"{self.right_s:.1f}"
        return (
            f"{self.outage:<28} {self.away_s:>6.1f} {LABS:>5} {seen.running:>8} {failed:>8} {seen.stopped:>8}"
            f" {seen.lost:>5} {seen.doubled:>8} {right:>8} {seen.retries:>8} {seen.redeliveries:>12}"
            f"  {self.note}"
        )


HEADER = (
    f"{'outage':<28} {'away s':>6} {'labs':>5} {'RUNNING':>8} {'FAILED':>8} {'STOPPED':>8} {'lost':>5}"
    f" {'doubled':>8} {'right s':>8} {'retries':>8} {'redeliveries':>12}"
)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    rows: list[Row] = []
    yield rows
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n\n" + "\n".join([HEADER, *(row.line() for row in rows)]) + "\n")


@pytest.fixture(scope="module")
def place() -> Place:
    """The platform of `make up`."""
    return Place(
        amqp_url=os.environ["AMQP_URL"],
        database_url=os.environ["DATABASE_URL"],
        namespace=LAB_NAMESPACE,
        image=os.environ["LAB_IMAGE"],
        environ=os.environ,
    )


@pytest.fixture
def loop(place: Place) -> Iterator[Loop]:
    # Of this moment: the rows and objects of another run have another student.
    loop = Loop(place, student_id=time.time_ns() // 1_000_000)
    yield loop
    _stop_all(loop)


def _stop_all(loop: Loop) -> None:
    loop.stop_all()
    eventually(lambda: all(row["status"] in ("STOPPED", "FAILED") for row in loop.rows()), 60)
    eventually(lambda: not loop.objects(), 60, what="objects gone")
    loop.close()


def go_through(
    row: Row,
    loop: Loop,
    outage: Callable[[], object],
    *,
    causes: frozenset[str] = frozenset(),
    begin_after: int = BEGIN_AFTER,
) -> None:
    """Let the outage come while the loop runs; check that all is right some time after it."""
    loop.start()
    eventually(lambda: loop.requested >= begin_after, 60, what="labs asked for")
    began = time.monotonic()
    outage()
    over = time.monotonic()
    row.away_s = over - began
    loop.end()

    def right() -> list[str]:
        row.outcome = look(loop, causes)
        return row.outcome.wrong

    nothing: list[str] = []
    eventually_equal(right, nothing, RIGHT_S)
    row.right_s = time.monotonic() - over
    eventually_equal(lambda: differences(loop), nothing, 60)
    assert (row.outcome.lost, row.outcome.doubled) == (0, 0)
    if loop.asked_again:
        row.note = f"backend asked {loop.asked_again} times again"


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("name", "outage", "causes"),
    [
        ("broker's Pod deleted", outages.delete_broker, []),
        ("broker killed (SIGKILL)", outages.kill_broker, []),
        ("PostgreSQL restarted", outages.restart_database, ["database_away"]),
        ("API server frozen for 20 s", outages.freeze_api_server, ["cluster_away"]),
        ("API server killed", outages.kill_api_server, ["cluster_away"]),
        ("KEDA's operator killed", outages.kill_operator, []),
        ("MinIO away for 15 s", outages.stop_store, ["store_away"]),
    ],
)
def test_an_outage_loses_and_doubles_no_lab(
    loop: Loop, table: list[Row], name: str, outage: Callable[[], None], causes: list[str]
) -> None:
    table.append(Row(name))
    go_through(table[-1], loop, outage, causes=frozenset(causes))


@pytest.mark.timeout(400)
def test_containers_that_are_killed_lose_and_double_no_lab(loop: Loop, table: list[Row]) -> None:
    row = Row("containers of jobs killed")
    table.append(row)
    killed = []

    def kill() -> None:
        killed.append(outages.kill_containers(lambda: loop.runs))

    go_through(row, loop, kill, causes=frozenset({"container_crashed"}), begin_after=1)
    row.note = f"{killed[0]} killed"
    assert killed[0] > 0


@pytest.mark.timeout(400)
def test_wrong_clocks_lose_and_double_no_lab(own_platform: OwnPlatform, table: list[Row]) -> None:
    place = Place(
        amqp_url=own_platform.broker.url,
        database_url=own_platform.database.url,
        namespace=own_platform.namespace.name,
        image=os.environ["LAB_IMAGE"],
        environ={**own_platform.containers.environ, "KUBECONFIG": os.environ["KUBECONFIG"]},
    )
    loop = Loop(place, student_id=1)
    skews = [timedelta(hours=1), timedelta(hours=-1)]
    row = Row("clocks of jobs wrong")
    table.append(row)
    with SkewedContainers(own_platform.containers, skews) as skewed:
        go_through(row, loop, lambda: None)
        _stop_all(loop)
    row.note = "by +1 h and -1 h, in turn"
    seen = skewed.seen_skews()
    assert len(seen) >= LABS
    assert [found for wanted, found in seen if abs(found - wanted) > timedelta(minutes=2)] == []
