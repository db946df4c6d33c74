"""The examples of docs/examples, each as a real server with a real database and a real broker."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dispatcher import CreateLabPod, DeleteLabPod
from dispatcher.broker import topology
from dispatcher.message.envelope import TaskMessage, decode
from dispatcher.migrations.migrate import upgrade
from dispatcher.tasks import parse_payload
from tests.support.backend import ANY_PORT, Answer, Backend
from tests.support.broker.rabbitmq import Broker
from tests.support.broker.tcp_proxy import TcpProxy
from tests.support.containers.in_process import run_command
from tests.support.database.postgres import Database, Server
from tests.support.waiting import ends_within, eventually

DEMO_IMAGE = "registry.gitlab.com/autolabs/labs/demo:1.0.0"
#: Seconds that the relay of an example may wait for a broker that is away.
RELAY_S = 2.0
#: Seconds in which an answer comes that waits for no more than that.
BOUND_S = 4 * RELAY_S
Serve = Callable[..., Backend]


@pytest.fixture(scope="module", params=list(ANY_PORT))
def example(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def module_broker() -> Iterator[Broker]:
    broker = Broker.create(os.environ["AMQP_URL"], os.environ["RABBITMQ_API_URL"])
    broker.declare()
    yield broker
    broker.remove()


@pytest.fixture(scope="module")
def module_database() -> Iterator[Database]:
    database = Server(os.environ["DATABASE_URL"]).create()
    upgrade(database.url)
    yield database
    database.drop()


@pytest.fixture
def broker(module_broker: Broker) -> Iterator[Broker]:
    """The one that the servers of this module have, emptied after a test."""
    yield module_broker
    module_broker.empty()


@pytest.fixture
def database(module_database: Database, broker: Broker) -> Iterator[Database]:
    """The one that the servers of this module have, emptied after a test."""
    del broker  # whose queues are emptied after this, when no relay is under way any more
    yield module_database
    module_database.rows("DROP FUNCTION IF EXISTS fail CASCADE; TRUNCATE lab_instances, task_outbox CASCADE")


@pytest.fixture(scope="module")
def module_backend(
    example: str,
    module_broker: Broker,
    module_database: Database,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Backend]:
    environ = {"AMQP_URL": module_broker.url, "DATABASE_URL": module_database.url}
    backend = Backend(example, environ, tmp_path_factory.mktemp("examples") / f"{example}.log")
    yield backend
    backend.end()


@pytest.fixture
def serve(example: str, database: Database, tmp_path: Path) -> Iterator[Serve]:
    """Start the example with another way to the broker."""
    started: list[Backend] = []

    def start(amqp_url: str) -> Backend:
        environ = {"AMQP_URL": amqp_url, "DATABASE_URL": database.url}
        started.append(Backend(example, environ, tmp_path / f"{example}.log"))
        return started[-1]

    yield start
    for backend in started:
        backend.end()


@pytest.fixture
def backend(module_backend: Backend, broker: Broker, database: Database) -> Backend:
    """The example as a server, of which a test sees its own part of the log."""
    del broker, database
    module_backend.forget_log()
    return module_backend


def waiting(database: Database) -> list[str]:
    return [row["task_id"] for row in database.rows("SELECT task_id FROM task_outbox ORDER BY id")]


def nothing_happened(broker: Broker, database: Database) -> bool:
    return not database.rows("SELECT id FROM lab_instances") and not waiting(database) and broker.is_empty()


def take(broker: Broker, queue: str) -> TaskMessage:
    message = broker.take(queue)
    return decode(message.body, message.properties)


def payload_of(task: TaskMessage) -> Any:
    return parse_payload(task.name, task.args, task.kwargs)


def relay_once(broker: Broker, database: Database) -> int:
    """Call `autolabs outbox relay --once`, as the sweep does, and return how many tasks it published."""
    environ = {"AMQP_URL": broker.url, "DATABASE_URL": database.url}
    done = run_command("outbox", "relay", "--once", environ=environ)
    assert done.code == 0, done
    return int(done.out.partition(":")[2])


def named_field(answer: Answer) -> str:
    """Return the field that a refusal names, in FastAPI's form or in the other two's."""
    if "field" in answer.content:
        return str(answer.content["field"])
    return ".".join(map(str, answer.content["detail"][0]["loc"][1:]))


def test_a_post_commits_the_lab_and_publishes_its_task(
    backend: Backend, broker: Broker, database: Database
) -> None:
    answer = backend.post({"lab_id": 123})
    assert answer.status == 202
    lab_instance_id, task_id = answer.content["id"], answer.content["task_id"]
    assert (answer.content["status"], answer.content["connection_url"]) == ("PENDING", None)
    lab = database.lab(lab_instance_id)
    assert (lab["status"], lab["student_id"], lab["celery_task_id"]) == ("PENDING", 42, task_id)
    task = take(broker, topology.QUEUE_NORMAL)
    assert task.id == task_id
    assert payload_of(task) == CreateLabPod(
        lab_instance_id=lab_instance_id, lab_id=123, student_id=42, docker_image=DEMO_IMAGE
    )
    eventually(lambda: not waiting(database), what="the relay's commit")
    assert "Traceback" not in backend.logged()


def test_the_course_says_image_and_resources(backend: Backend, broker: Broker) -> None:
    assert backend.post({"lab_id": 456}).status == 202
    payload = payload_of(take(broker, topology.QUEUE_NORMAL))
    assert payload.docker_image == "registry.gitlab.com/autolabs/labs/nmap:v1.0.0"
    assert payload.resources == {"cpu": "500m", "memory": "512Mi"}


def test_clicks_at_the_same_time_start_one_lab(backend: Backend, broker: Broker, database: Database) -> None:
    with ThreadPoolExecutor(6) as clicks:
        answers = list(clicks.map(lambda _: backend.post({"lab_id": 123}), range(6)))
    assert sorted(answer.status for answer in answers) == [200] * 5 + [202]
    assert len({(answer.content["id"], answer.content["task_id"]) for answer in answers}) == 1
    take(broker, topology.QUEUE_NORMAL)
    eventually(lambda: not waiting(database), what="the relay's commit")
    assert broker.is_empty()


def test_another_lab_than_a_student_may_have_is_refused(backend: Backend, database: Database) -> None:
    live = [database.add_lab(student_id=42, lab_id=lab_id, status="RUNNING") for lab_id in (7, 8)]
    answer = backend.post({"lab_id": 123})
    assert (answer.status, answer.content["live"]) == (409, live)
    assert waiting(database) == []


REFUSED: dict[str, Any] = {
    "docker_image": {"lab_id": 123, "docker_image": "registry.gitlab.com/autolabs/labs/nmap:2"},
    "resources": {"lab_id": 123, "resources": {"cpu": "64"}},
    "student_id": {"lab_id": 123, "student_id": 43},
    "lab_id": {"lab_id": 999},
}


def test_what_is_refused_names_the_field_and_leaves_nothing(
    backend: Backend, broker: Broker, database: Database
) -> None:
    for field, body in REFUSED.items():
        answer = backend.post(body)
        assert (answer.status, named_field(answer)) == (422, field), answer
    for body in ({"lab_id": "123"}, {"lab_id": [123]}, {"lab_id": 2**70}, {"lab_id": True}, {}):
        answer = backend.post(body)
        assert (answer.status, named_field(answer)) == (422, "lab_id"), answer
    for raw in (b"{", b"[]", b""):
        assert backend.post(raw).status in (400, 422)
    assert backend.post({"lab_id": 123}, student=None).status == 401
    assert nothing_happened(broker, database)


@pytest.mark.parametrize("how", ["refuses", "is silent"])
def test_with_the_broker_away_the_task_is_kept_and_relayed_later(
    serve: Serve, broker: Broker, database: Database, how: str
) -> None:
    with TcpProxy.to(broker.url) as proxy:
        backend = serve(proxy.through(broker.url))
        proxy.close() if how == "refuses" else proxy.freeze()
        with ends_within(BOUND_S):
            answer = backend.post({"lab_id": 123})
        assert (answer.status, answer.content["status"]) == (202, "PENDING")
        assert waiting(database) == [answer.content["task_id"]]
        assert database.lab(answer.content["id"])["celery_task_id"] == answer.content["task_id"]
        assert broker.is_empty()

        def relayed() -> bool:  # not before the server's own relay gave up and its backoff is over
            return relay_once(broker, database) == 1

        eventually(relayed)
    assert take(broker, topology.QUEUE_NORMAL).id == answer.content["task_id"]
    assert waiting(database) == []


#: At once; few, so that they wait for the broker rather than for a processor.
STUDENTS = 5


def test_a_silent_broker_does_not_take_the_reads_with_it(
    serve: Serve, broker: Broker, database: Database
) -> None:
    posts: list[float] = []
    gets: list[float] = []
    answers: list[Answer] = []
    student_ids = itertools.count(1000)

    def student(_number: int) -> None:
        """Start a lab and look at it, again and again, with a moment between."""
        while time.monotonic() < end:
            student_id = next(student_ids)
            began = time.monotonic()
            answer = server.post({"lab_id": 123}, student=student_id)
            posts.append(time.monotonic() - began)
            answers.append(answer)
            began = time.monotonic()
            assert server.get(answer.content["id"], student=student_id).status == 200
            gets.append(time.monotonic() - began)
            time.sleep(0.2)

    with TcpProxy.to(broker.url) as proxy:
        server = serve(proxy.through(broker.url))
        assert server.post({"lab_id": 123}).status == 202
        eventually(lambda: not waiting(database), what="the first task's publish")
        proxy.freeze()
        # Longer than it takes to find the broker silent: most do not wait for that, nor after it.
        end = time.monotonic() + 2 * RELAY_S
        with ThreadPoolExecutor(STUDENTS) as students:
            list(students.map(student, range(STUDENTS)))
    for name, times in (("POST", sorted(posts)), ("GET", sorted(gets))):
        print(f"{name}: {len(times)}, median {times[len(times) // 2]:.2f} s, at worst {times[-1]:.2f} s")
    assert {answer.status for answer in answers} == {202}
    assert sorted(waiting(database)) == sorted(answer.content["task_id"] for answer in answers)
    assert statistics.median(posts) < RELAY_S / 2
    assert statistics.median(gets) < RELAY_S / 2
    assert max(posts) < BOUND_S
    assert max(gets) < BOUND_S


#: When -> a trigger that ends the transaction of a POST half way, as a bug or a deadlock does.
FAILURES = {
    "after the row": "TRIGGER fails AFTER INSERT ON lab_instances",
    "at the commit": "CONSTRAINT TRIGGER fails AFTER INSERT ON task_outbox DEFERRABLE INITIALLY DEFERRED",
}


@pytest.mark.parametrize("when", FAILURES)
def test_a_transaction_that_fails_publishes_nothing(
    backend: Backend, broker: Broker, database: Database, when: str
) -> None:
    database.rows(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'caused by the test'; END $$"
    )
    database.rows(f"CREATE {FAILURES[when]} FOR EACH ROW EXECUTE FUNCTION fail()")
    assert backend.post({"lab_id": 123}).status == 500
    eventually(lambda: "caused by the test" in backend.logged())  # uvicorn logs after the answer
    assert nothing_happened(broker, database)
    assert relay_once(broker, database) == 0
    assert broker.is_empty()


def test_a_get_shows_what_became_of_the_lab(backend: Backend, database: Database) -> None:
    running = database.add_lab(student_id=42, status="RUNNING", connection_url="http://lab.test:8080")
    answer = backend.get(running)
    assert answer.status == 200
    assert (answer.content["status"], answer.content["connection_url"]) == ("RUNNING", "http://lab.test:8080")
    why = {"error_category": "PERMANENT_IMAGE_ERROR", "error_message": "There is no such image."}
    failed = backend.get(database.add_lab(student_id=42, status="FAILED", **why))
    assert failed.content == {**failed.content, "status": "FAILED", **why}


def test_only_ones_own_labs_are_there(backend: Backend, broker: Broker, database: Database) -> None:
    of_another = database.add_lab(student_id=43)
    for lab_instance_id in (of_another, of_another + 1):
        assert backend.get(lab_instance_id).status == 404
        assert backend.delete(lab_instance_id).status == 404
    assert backend.get(2**63).status in (404, 422)
    assert backend.delete(2**63).status in (404, 422)
    assert database.lab(of_another)["stop_requested_at"] is None
    assert waiting(database) == []
    assert broker.is_empty()


def test_deletes_at_the_same_time_ask_for_one_stop(
    backend: Backend, broker: Broker, database: Database
) -> None:
    lab_instance_id = database.add_lab(student_id=42, status="RUNNING")
    with ThreadPoolExecutor(4) as clicks:
        answers = list(clicks.map(lambda _: backend.delete(lab_instance_id), range(4)))
    answers.append(backend.delete(lab_instance_id))
    assert [answer.status for answer in answers] == [202] * 5
    assert payload_of(take(broker, topology.QUEUE_HIGH)) == DeleteLabPod(lab_instance_id=lab_instance_id)
    eventually(lambda: not waiting(database), what="the relay's commit")
    assert broker.is_empty()
    assert database.lab(lab_instance_id)["stop_requested_at"] is not None
