"""What a backend's AsyncResult sees of tasks that containers run, through a real Redis."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg2
import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult
from redis import Redis

from dispatcher.broker import topology
from dispatcher.errors import TaskFailed
from dispatcher.message.celery_results import key_of
from dispatcher.message.envelope import encode
from dispatcher.tasks import CLEANUP_TIMEOUT_LABS, CREATE_LAB_POD
from jobs.config.environment import ResultSettings
from jobs.database.ledger import Ending
from jobs.notify import redis_results as results_module
from jobs.notify.redis_results import ResultWriter
from jobs.notify.redis_results import redis_url as adapted
from tests.support.broker.rabbitmq import Broker
from tests.support.broker.tcp_proxy import TcpProxy
from tests.support.containers.container import Containers, Run
from tests.support.containers.container_here import close_writer
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_task
from tests.support.waiting import HANG_S, ends_within, eventually, eventually_equal

DONE = Ending("succeeded", result={"n": 1})


@pytest.fixture
def storing(containers: Containers, redis_url: str) -> Containers:
    """Containers that store results."""
    containers.environ |= {"CELERY_RESULT_BACKEND": redis_url, "CELERY_RESULT_EXPIRES": "600"}
    return containers


@pytest.fixture
def redis(redis_url: str) -> Iterator[Any]:
    client = Redis.from_url(redis_url)
    yield client
    client.close()


@pytest.fixture
def make_writer(redis_url: str) -> Iterator[Callable[..., ResultWriter]]:
    made: list[ResultWriter] = []

    def make(url: str = redis_url, expires_s: int = 60) -> ResultWriter:
        made.append(ResultWriter(ResultSettings(url, expires_s)))
        return made[-1]

    yield make
    for writer in made:
        close_writer(writer)


@contextmanager
def locked(database: Database, table: str) -> Iterator[None]:
    """Hold a table, so that a task that needs it is under way for as long as a test wants."""
    holder = psycopg2.connect(database.url)
    holder.cursor().execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
    yield
    holder.rollback()
    holder.close()


def send(app: Celery, name: str, **kwargs: Any) -> AsyncResult:
    return app.send_task(name, kwargs=kwargs)


def warnings_of(container: Run) -> list[str]:
    return [line["message"] for line in container.lines() if line.get("action") == "result_missed"]


def test_a_task_is_pending_then_started_then_a_success_with_its_result(
    storing: Containers, celery_app: Celery, database: Database, redis: Any
) -> None:
    lab = database.add_lab(status="RUNNING")
    database.expire(lab)
    found = send(celery_app, CLEANUP_TIMEOUT_LABS)
    assert found.state == "PENDING"
    with locked(database, "lab_instances"):
        container = storing.start(queue=topology.QUEUE_LOW)
        eventually_equal(lambda: found.state, "STARTED")
        assert found.info["pid"] == container.popen.pid
        assert database.results.status(found.id).state == "STARTED"
    assert found.get(timeout=HANG_S) == {"deletes_published": 1, "expired": 1}
    assert container.wait() == 0
    assert (found.state, found.successful()) == ("SUCCESS", True)
    assert datetime.now(timezone.utc) - found.date_done < timedelta(minutes=5)
    assert 500 < redis.ttl(key_of(found.id)) <= 600
    assert database.results.status(found.id).result == found.result
    assert warnings_of(container) == []


def test_whoever_waits_is_told_of_the_end(storing: Containers, celery_app: Celery) -> None:
    found = send(celery_app, CLEANUP_TIMEOUT_LABS)
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(found.get(timeout=HANG_S)))
    waiting.start()
    storing.run_here(queue=topology.QUEUE_LOW)
    waiting.join(HANG_S)
    assert got == [{"deletes_published": 0}]


def test_a_spare_stores_the_result_of_its_task(
    storing: Containers, celery_app: Celery, broker: Broker
) -> None:
    container = storing.start(queue=topology.QUEUE_LOW, CLAIM_WAIT_S=60)
    eventually(lambda: broker.consumers(topology.QUEUE_LOW))
    assert send(celery_app, CLEANUP_TIMEOUT_LABS).get(timeout=HANG_S) == {"deletes_published": 0}
    assert container.wait() == 0
    assert warnings_of(container) == []


def test_a_transient_failure_is_a_retry_and_the_last_a_failure(
    storing: Containers, celery_app: Celery, broker: Broker
) -> None:
    found = send(celery_app, CREATE_LAB_POD, **create_kwargs(lab_instance_id=4711))
    storing.run_here(CELERY_TASK_RETRY_DELAY=0.3, CELERY_TASK_MAX_RETRIES=1)
    assert found.state == "RETRY"
    assert isinstance(found.info, TaskFailed)
    eventually(lambda: broker.depth(topology.QUEUE_NORMAL) == 1)
    storing.run_here(CELERY_TASK_MAX_RETRIES=1)
    with pytest.raises(TaskFailed, match="Lab 4711 is not in the database") as caught:
        found.get(timeout=HANG_S)
    assert caught.value.category == "PERMANENT_INVALID_REQUEST"  # no row: lab_unknown
    assert (found.state, found.failed()) == ("FAILURE", True)


def test_a_backend_without_the_dispatcher_gets_an_exception_that_says_the_same(
    storing: Containers, celery_app: Celery, redis_url: str
) -> None:
    found = send(celery_app, CREATE_LAB_POD, **create_kwargs(lab_instance_id=1, docker_image="Not An Image"))
    storing.run_here()
    code = (
        "import sys; from celery import Celery\n"
        "app = Celery('x', backend=sys.argv[1])\n"
        "try: app.AsyncResult(sys.argv[2]).get(timeout=30)\n"
        "except Exception as exc: print(type(exc).__name__, exc)\n"
        "assert 'dispatcher' not in sys.modules"
    )
    words = [sys.executable, "-c", code, redis_url, found.id]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert said.startswith("TaskFailed ('PERMANENT_INVALID_REQUEST', 'The request for this lab is not valid")


@pytest.mark.parametrize("broken", ["unknown task", "no JSON"])
def test_what_cannot_be_run_is_a_failure(
    storing: Containers, celery_app: Celery, broker: Broker, database: Database, broken: str
) -> None:
    task = make_task(name="celery_workers.nope") if broken == "unknown task" else make_task()
    body, how = encode(task)
    broker.publish(topology.QUEUE_NORMAL, b"{" if broken == "no JSON" else body, headers=how["headers"])
    code, _ = storing.run_here()
    assert code == 0
    found = celery_app.AsyncResult(task.id)
    with pytest.raises(TaskFailed) as caught:
        found.get(timeout=HANG_S)
    assert caught.value.category == "PERMANENT_INVALID_REQUEST"
    assert database.results.status(task.id).error_message == caught.value.message
    assert broker.depth(topology.DEAD_LETTER_QUEUE) == 1


def test_a_cancelled_task_is_revoked(
    storing: Containers, celery_app: Celery, database: Database, broker: Broker
) -> None:
    found = send(celery_app, CLEANUP_TIMEOUT_LABS)
    assert database.results.cancel(found.id).state == "REVOKED"
    code, container = storing.run_here(queue=topology.QUEUE_LOW)
    assert code == 0
    assert "revoked" in container.actions()
    with pytest.raises(TaskRevokedError, match=r"The task was cancelled\."):
        found.get(timeout=HANG_S)
    assert found.state == "REVOKED"
    assert database.outcomes() == ["revoked"]
    assert broker.is_empty(*topology.BINDINGS, topology.DEAD_LETTER_QUEUE)


def test_an_expired_task_is_revoked(
    storing: Containers, celery_app: Celery, database: Database, broker: Broker
) -> None:
    task = make_task(name=CLEANUP_TIMEOUT_LABS, kwargs={}, expires=datetime.now(timezone.utc) - timedelta(1))
    body, how = encode(task)
    broker.publish(topology.QUEUE_LOW, body, headers=how["headers"])
    storing.run_here(queue=topology.QUEUE_LOW)
    assert celery_app.AsyncResult(task.id).state == "REVOKED"
    assert database.outcomes() == ["revoked"]
    assert broker.is_empty(*topology.BINDINGS, topology.DEAD_LETTER_QUEUE)


@pytest.mark.parametrize("broken", [False, True], ids=["run", "refused"])
def test_a_sender_who_wants_no_result_gets_none(
    storing: Containers, broker: Broker, database: Database, redis: Any, broken: bool
) -> None:
    task = make_task(name=CLEANUP_TIMEOUT_LABS, kwargs={}, ignore_result=True)
    body, how = encode(task)
    broker.publish(topology.QUEUE_LOW, b"{" if broken else body, headers=how["headers"])
    storing.run_here(queue=topology.QUEUE_LOW)
    assert redis.get(key_of(task.id)) is None
    assert database.outcomes() == (["dead_lettered"] if broken else ["succeeded"])


@pytest.mark.parametrize("trouble", ["away", "frozen", "wrong password"])
def test_trouble_with_redis_costs_a_warning_and_little_time(
    storing: Containers, celery_app: Celery, database: Database, broker: Broker, redis_url: str, trouble: str
) -> None:
    send(celery_app, CLEANUP_TIMEOUT_LABS)
    with TcpProxy.to(redis_url) as proxy:
        url = proxy.through(redis_url)
        if trouble == "frozen":
            proxy.freeze()
        elif trouble == "away":
            url = "redis://:hidden@127.0.0.1:1/0"
        else:
            url = redis_url.replace("redis://:", "redis://:hidden")
        code, container = storing.run_here(queue=topology.QUEUE_LOW, CELERY_RESULT_BACKEND=url)
    assert code == 0
    assert database.outcomes() == ["succeeded"]
    assert broker.is_empty(topology.QUEUE_LOW)
    assert warnings_of(container)
    assert "hidden" not in container.log.read_text()
    ts = {
        line["action"]: datetime.fromisoformat(line["ts"]) for line in container.lines() if "action" in line
    }
    after = (datetime.fromisoformat(container.lines()[-1]["ts"]) - ts["done"]).total_seconds()
    assert after < 5 * results_module.PATIENCE_S


def test_a_result_that_was_not_stored_does_not_run_the_task_again(
    storing: Containers, celery_app: Celery, database: Database
) -> None:
    send(celery_app, CLEANUP_TIMEOUT_LABS)
    storing.run_here(queue=topology.QUEUE_LOW, CELERY_RESULT_BACKEND="redis://127.0.0.1:1/0")
    code, container = storing.run_here(queue=topology.QUEUE_LOW, CLAIM_WAIT_S=0.5)
    assert (code, container.actions()[-1]) == (0, "idle")
    assert database.outcomes() == ["succeeded"]


def state_in(redis: Any, task_id: str) -> str:
    return str(json.loads(redis.get(key_of(task_id)))["status"])


@pytest.mark.parametrize(
    ("first", "then", "stays"),
    [
        ("succeeded", "failed", "SUCCESS"),
        ("succeeded", "started", "SUCCESS"),
        ("noop", "revoked", "SUCCESS"),
        ("failed", "started", "FAILURE"),
        ("failed", "retried", "FAILURE"),
        ("failed", "succeeded", "SUCCESS"),
        ("failed", "noop", "FAILURE"),
        ("dead_lettered", "noop", "FAILURE"),
        ("revoked", "noop", "REVOKED"),
        ("started", "noop", "SUCCESS"),
        ("noop", "failed", "SUCCESS"),
        ("revoked", "started", "REVOKED"),
        ("retried", "started", "STARTED"),
        ("started", "retried", "RETRY"),
    ],
)
def test_which_state_overwrites_which(
    make_writer: Callable[..., ResultWriter], redis: Any, first: str, then: str, stays: str
) -> None:
    writer, task_id = make_writer(), make_task().id
    for outcome in (first, then):
        if outcome == "started":
            writer.started(task_id)
        else:
            writer.finished(task_id, Ending(outcome, "CATEGORY", "Sentence.", result={}))
    writer.finished(make_task().id, DONE)  # what was ordered before is done by then
    assert state_in(redis, task_id) == stays


def test_a_result_may_be_kept_for_ever(make_writer: Callable[..., ResultWriter], redis: Any) -> None:
    task_id = make_task().id
    make_writer(expires_s=0).finished(task_id, DONE)
    assert redis.ttl(key_of(task_id)) == -1
    redis.delete(key_of(task_id))


def test_a_connection_that_died_of_idleness_is_replaced(
    make_writer: Callable[..., ResultWriter], redis: Any, redis_url: str
) -> None:
    task_id = make_task().id
    with TcpProxy.to(redis_url) as proxy:
        writer = make_writer(proxy.through(redis_url))
        writer.finished(make_task().id, DONE)
        proxy.cut()
        writer.finished(task_id, DONE)
    assert state_in(redis, task_id) == "SUCCESS"


def test_warming_up_does_not_wait_for_a_redis_that_does_not_answer(
    make_writer: Callable[..., ResultWriter], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_module, "_TIMEOUT_S", HANG_S)
    with TcpProxy.to(redis_url) as proxy:
        proxy.freeze()
        with ends_within():
            make_writer(proxy.through(redis_url)).warm()


def test_the_url_of_celery_is_understood() -> None:
    url = "rediss://u:p%2F@h:6380/2?ssl_cert_reqs=CERT_NONE&ssl_ca_certs=%2Fca.pem"
    assert adapted(url) == "rediss://u:p%2F@h:6380/2?ssl_cert_reqs=none&ssl_ca_certs=%2Fca.pem"
    assert adapted("redis://:p@h/0") == "redis://:p@h/0"
