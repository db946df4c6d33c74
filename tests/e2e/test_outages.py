"""One backend starts and stops labs while parts of the platform are away, one after the other.

Every lab ends as it was asked to, or FAILED with a reason that names the outage; none is lost, none is
doubled, and `autolabs verify` finds nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from console.access import open_cluster
from deploy.demo.platform import LABS as LAB_NAMESPACE
from tests.support.outages import taking_away
from tests.support.outages.look import look
from tests.support.outages.loop import Backend, Loop, Place
from tests.support.outages.row import HEADER, RIGHT_S, Row, go_through

pytestmark = pytest.mark.skipif(
    os.environ.get("CLUSTER") == "existing", reason="the parts of another cluster are not ours to end"
)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    rows: list[Row] = []
    yield rows
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n\n" + "\n".join([HEADER, *(row.line() for row in rows)]) + "\n")


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    """A backend of the platform of `make up`."""
    place = Place(
        amqp_url=os.environ["AMQP_URL"],
        database_url=os.environ["DATABASE_URL"],
        namespace=LAB_NAMESPACE,
        cluster=open_cluster(os.environ),
        image=os.environ["LAB_IMAGE"],
        environ=os.environ,
    )
    backend = Backend(place)
    yield backend
    backend.close()


@pytest.fixture
def loop(backend: Backend) -> Iterator[Loop]:
    """The labs of one outage; the next finds a platform that serves, and none of them."""
    taking_away.wait_until_all_serve()
    # Of this moment: the rows and objects of another outage, or another run, have another student.
    loop = Loop(backend, student_id=time.time_ns() // 1_000_000)
    yield loop
    loop.clear()


#: What is done -> how, and the causes for which labs may be FAILED then.
OUTAGES: dict[str, tuple[Callable[[Loop], object], list[str]]] = {
    "broker's Pod deleted": (lambda _: taking_away.delete_broker(), []),
    "broker killed (SIGKILL)": (lambda _: taking_away.kill_broker(), []),
    "PostgreSQL restarted": (lambda _: taking_away.restart_database(), ["database_away"]),
    "API server frozen": (
        lambda loop: taking_away.freeze_api_server(lambda: loop.gave_back("cluster_away")),
        ["cluster_away"],
    ),
    "API server killed": (lambda _: taking_away.kill_api_server(), ["cluster_away"]),
    "KEDA's operator killed": (lambda _: taking_away.kill_operator(), []),
    "MinIO away": (lambda loop: taking_away.stop_store(lambda: loop.gave_back("store_away")), ["store_away"]),
}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", OUTAGES)
def test_an_outage_loses_and_doubles_no_lab(loop: Loop, table: list[Row], name: str) -> None:
    outage, causes = OUTAGES[name]
    table.append(Row(name))
    go_through(table[-1], loop, lambda: outage(loop), causes=frozenset(causes))


@pytest.mark.timeout(400)
def test_containers_that_are_killed_lose_and_double_no_lab(loop: Loop, table: list[Row]) -> None:
    row = Row("containers of jobs killed")
    table.append(row)
    causes = frozenset({"container_crashed"})
    killed = []

    deadline = time.monotonic() + RIGHT_S

    def unfinished() -> bool:
        # What is still wrong then is told by `go_through`.
        return time.monotonic() < deadline and (loop.runs or bool(look(loop, causes).wrong))

    def kill() -> None:
        killed.append(taking_away.kill_containers(unfinished))

    go_through(row, loop, kill, causes=causes, begin_after=1)
    row.note = f"{killed[0]} killed"
    assert killed[0] > 0
