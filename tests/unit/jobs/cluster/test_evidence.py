"""Looking at a failed lab never takes long, and its facts are told shortly."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from jobs.cluster import evidence
from jobs.cluster.access import ClusterAccess
from jobs.cluster.client import Cluster, Manifest
from jobs.cluster.pod_facts import most_telling_container, pod_facts, summary


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def look(connect: Callable[[], Cluster]) -> tuple[evidence.Evidence, float]:
    started = time.monotonic()
    sight = evidence.collect(connect, "labs", 1, pod_name="lab-instance-1-x")
    return sight, time.monotonic() - started


def test_a_silent_api_server_is_a_note(silent: str) -> None:
    sight, took_s = look(lambda: Cluster(ClusterAccess(silent, ca_pem="")))
    assert took_s < 3 * evidence.PATIENCE_S
    assert (sight.pod, sight.answered, [*sight.seen]) == (None, False, ["note"])
    assert "not all could be read" in sight.seen["note"]


def test_a_connection_that_is_not_made_is_a_note() -> None:
    released = threading.Event()

    def connect() -> Cluster:
        released.wait(10)
        raise AssertionError("nobody waits for this")

    sight, took_s = look(connect)
    released.set()
    assert evidence.PATIENCE_S <= took_s < 3 * evidence.PATIENCE_S
    assert sight.seen == {"note": "not all could be read: no answer within 2 s"}


def container(name: str, **fields: object) -> Manifest:
    return {"name": name, "restartCount": 0, **fields}


ENDED = {"terminated": {"exitCode": 1, "reason": "Error"}}
COMPLETED = {"terminated": {"exitCode": 0, "reason": "Completed"}}
RUNNING: Manifest = {"running": {}}
WAITING: Manifest = {"waiting": {"reason": "ContainerCreating"}}


@pytest.mark.parametrize(
    ("init", "main", "expected"),
    [
        (container("init", state=ENDED), container("lab", state=WAITING), "init"),
        (container("init", state=COMPLETED, ready=True), container("lab", state=RUNNING), "lab"),
        (container("init", state=COMPLETED, ready=True), container("lab", state=ENDED), "lab"),
        (container("init", state=WAITING, restartCount=3, lastState=ENDED), container("lab"), "init"),
        (container("init", state=WAITING), container("lab", state=WAITING), None),
    ],
    ids=["init failed", "lab is not ready", "lab ended", "init crashes", "none ran"],
)
def test_the_log_is_of_the_container_that_failed(
    init: Manifest, main: Manifest, expected: str | None
) -> None:
    pod = {"status": {"initContainerStatuses": [init], "containerStatuses": [main]}}
    found = most_telling_container(pod)
    assert (found and found["name"]) == expected


def test_the_summary_is_of_the_events_without_a_log_and_of_the_note_without_anything() -> None:
    status = {"phase": "Pending", "containerStatuses": [container("lab", state=WAITING)]}
    seen = pod_facts({"metadata": {"name": "p"}, "status": status})
    event = {"type": "Warning", "reason": "FailedMount", "message": "no volume"}
    assert summary(seen) == "container lab waiting ContainerCreating"
    assert summary({**seen, "events": [event]}).endswith("ContainerCreating; FailedMount: no volume")
    assert summary({"note": "no answer"}) == "no answer"
    assert summary({"pod": {"phase": "Pending"}}) == "phase Pending"
    assert summary({"containers": [{"name": "lab", "state": "running", "ready": False, "restarts": 0}]}) == (
        "container lab running, not ready"
    )
