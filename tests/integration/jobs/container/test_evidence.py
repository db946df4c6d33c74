"""What is kept of a lab that failed, with an API server that a test scripts; the rest is real."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from dispatcher.broker.topology import DEAD_LETTER_QUEUE
from jobs.cluster.evidence import COMPONENT
from jobs.cluster.pod_facts import LOG_LINES, MAX_BYTES
from jobs.config.environment import RetrySettings
from jobs.container.consumer import Settlement
from jobs.container.run_task import run_task
from jobs.handlers.context import Connections
from tests.support.broker.rabbitmq import Broker
from tests.support.cluster.fake_cluster import FakeCluster
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_task
from tests.support.http_server import Answer, status_object
from tests.support.labs.creates import CRASHED, delivery_of, name_of
from tests.support.waiting import HANG_S, ends_within

CANARY = "hunter2"


def fail(connections: Connections, lab: int, **changes: Any) -> Settlement:
    """Run a create of the lab, which fails."""
    task = make_task(kwargs=create_kwargs(lab_instance_id=lab), **changes)
    return run_task(connections, delivery_of(task), {})


def seen_of(database: Database) -> dict[str, Any]:
    (run,) = database.ledger()
    return dict(run["details"]["seen"])


def on_log(cluster: FakeCluster, content: bytes) -> list[dict[str, str]]:
    """Answer with this log; return the queries."""
    asked: list[dict[str, str]] = []

    def log(query: dict[str, str]) -> Answer:
        asked.append(query)
        return Answer(content=content)

    cluster.log = log
    return asked


def when_pod_applied(cluster: FakeCluster, **event: Any) -> None:
    """Let an event happen to the Pod as soon as there is one."""

    def happen(path: str) -> None:
        if "/pods/" in path:
            cluster.add_event(cluster.objects[path], **event)

    cluster.on_create = happen


def test_the_ledger_has_the_state_the_events_and_the_log_of_a_crash_loop(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    cluster.pod_status = CRASHED
    when_pod_applied(
        cluster, reason="BackOff", message="restarting failed container", count=4,
        lastTimestamp="2030-01-02T03:04:05Z",
    )  # fmt: skip
    asked = on_log(cluster, b"starting\nKeyError: 'X'\n")
    assert fail(connections, lab) is Settlement.ACK
    assert database.lab(lab)["status"] == "FAILED"
    assert cluster.names() == set(), "the objects are gone after they were looked at"
    assert seen_of(database) == {
        "pod": {"name": name_of(lab), "phase": "Running"},
        "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}],
        "containers": [
            {
                "name": "lab",
                "state": "waiting",
                "reason": "CrashLoopBackOff",
                "message": "back-off 20s",
                "last": {"reason": "Error", "message": "bye"},
                "exit_code": 3,
                "restarts": 2,
            }
        ],
        "events": [
            {
                "at": "2030-01-02T03:04:05Z",
                "type": "Warning",
                "reason": "BackOff",
                "message": "restarting failed container",
                "count": 4,
            }
        ],
        "log": {"container": "lab", "previous": True, "lines": ["starting", "KeyError: 'X'"]},
    }
    (query,) = asked
    assert (query["previous"], query["tailLines"], query["container"]) == ("true", "20", "lab")


def test_one_line_of_the_log_has_the_most_telling_of_it(
    connections: Connections, cluster: FakeCluster, lab: int, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.pod_status = CRASHED
    on_log(cluster, b"starting\nKeyError: 'X'\n\n")
    fail(connections, lab)
    (line,) = [r for r in caplog.records if getattr(r, "action", "") == "evidence"]
    assert line.levelname == "ERROR"
    assert line.getMessage() == (
        "seen of the lab: container lab waiting CrashLoopBackOff/Error, exit code 3; last line: KeyError: 'X'"
    )


def test_an_attempt_that_is_tried_again_is_looked_at_too(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    object.__setattr__(connections.settings, "retry", RetrySettings(max_retries=1, jitter=False))
    cluster.pod_status = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory"}
    assert fail(connections, lab) is Settlement.RETRY
    assert database.outcomes() == ["retried"]
    assert seen_of(database)["pod"] == {
        "name": name_of(lab),
        "phase": "Failed",
        "reason": "Evicted",
        "message": "The node was low on memory",
    }


def test_a_container_out_of_memory_is_seen_with_its_exit_code(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    ended = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    status = {"name": "lab", "restartCount": 0, "state": ended}
    cluster.pod_status = {"phase": "Failed", "containerStatuses": [status]}
    fail(connections, lab)
    (container,) = seen_of(database)["containers"]
    assert (container["reason"], container["exit_code"], container["restarts"]) == ("OOMKilled", 137, 0)
    assert database.ledger()[0]["details"]["cause"] == "out_of_memory"


def test_secrets_and_control_characters_are_not_kept(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    cluster.pod_status = json.loads(json.dumps(CRASHED).replace("bye", rf"password={CANARY} \u0000 \ud800"))
    when_pod_applied(cluster, reason="Failed", message=f"pull of https://u:{CANARY}@registry/x failed")
    on_log(
        cluster,
        f"token: {CANARY}\nAuthorization: Bearer {CANARY}\n-----BEGIN PRIVATE KEY-----\n{CANARY}\n".encode()
        + b"-----END PRIVATE KEY-----\n\x1b[31mred\x00\xff\n",
    )
    fail(connections, lab)
    (run,) = database.ledger()
    stored = json.dumps(run, default=str)
    assert CANARY not in stored
    assert seen_of(database)["containers"][0]["last"]["message"] == r"password=*** \x00 \ud800"
    assert seen_of(database)["log"]["lines"] == [
        "token: ***",
        "Authorization: ***",
        "private key ***",
        r"\x1b[31mred\x00\xff",
    ]


@pytest.mark.parametrize(
    "log",
    [b"x" * 300_000, b"\n" * 300_000, "ф".encode() * 30_000, (b"line %d " % 7 + b"y" * 900 + b"\n") * 60],
    ids=["one line", "empty lines", "cyrillic", "long lines"],
)
def test_what_is_kept_is_bounded_and_the_end_of_the_log_stays(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int, log: bytes
) -> None:
    message = "m" * 50_000
    container = {**CRASHED["containerStatuses"][0], "name": "c" * 50}
    container["state"] = {"waiting": {"reason": "CrashLoopBackOff", "message": message}}
    condition = {"type": "Ready", "status": "False", "message": message}
    cluster.pod_status = {
        "phase": "Running",
        "message": message,
        "conditions": [condition] * 30,
        "containerStatuses": [container] * 20,
    }
    when_pod_applied(cluster, reason="BackOff", message=message)
    on_log(cluster, log)
    fail(connections, lab)
    seen = seen_of(database)
    assert len(json.dumps(seen)) <= MAX_BYTES
    assert seen["containers"][0]["exit_code"] == 3
    assert database.lab(lab)["status"] == "FAILED"


def test_the_newest_events_and_lines_are_kept(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    cluster.pod_status = CRASHED

    def happen(path: str) -> None:
        if "/pods/" in path:
            for second in (9, 3, *range(10, 40)):
                at = f"2030-01-01T00:00:{second:02}Z"
                cluster.add_event(cluster.objects[path], reason=f"R{second}", lastTimestamp=at)

    cluster.on_create = happen
    on_log(cluster, b"".join(b"%d\n" % number for number in range(100)))
    fail(connections, lab)
    seen = seen_of(database)
    assert [event["reason"] for event in seen["events"]] == [f"R{second}" for second in range(30, 40)]
    assert seen["log"]["lines"] == [str(number) for number in range(100 - LOG_LINES, 100)]


def test_the_log_of_the_run_before_is_not_always_there(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    cluster.pod_status = CRASHED

    def log(query: dict[str, str]) -> Answer:
        if "previous" in query:
            return Answer(400, status_object(400, "BadRequest", "previous terminated container not found"))
        return Answer(content=b"now\n")

    cluster.log = log
    fail(connections, lab)
    assert seen_of(database)["log"] == {"container": "lab", "previous": False, "lines": ["now"]}


@pytest.mark.parametrize("status", [403, 500])
def test_a_log_that_is_refused_is_a_note_beside_the_rest(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int, status: int
) -> None:
    cluster.pod_status = CRASHED
    cluster.log = lambda _query: Answer(status, status_object(status, "No", "y" * 100_000))
    fail(connections, lab)
    seen = seen_of(database)
    assert seen["note"].startswith("no log: ")
    assert "log" not in seen
    assert seen["containers"][0]["exit_code"] == 3


@pytest.mark.parametrize("answer", [b"[" * 200_000, b"{}" * 10, b"[1]", b'{"items": [{}, 5, null]}', b"\xff"])
def test_events_that_are_not_what_they_should_be_are_a_note(
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    lab: int,
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes,
) -> None:
    cluster.pod_status = CRASHED
    monkeypatch.setattr(cluster, "_events", lambda *_: Answer(content=answer))
    assert fail(connections, lab) is Settlement.ACK
    seen = seen_of(database)
    assert "no events" in seen.get("note", "") or [e["reason"] for e in seen["events"]] == [""]
    assert seen["containers"][0]["exit_code"] == 3
    assert database.lab(lab)["status"] == "FAILED"


def test_an_api_server_that_hangs_costs_two_seconds(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    cluster.pod_status = CRASHED

    def drip(_query: dict[str, str]) -> Answer:
        def slowly() -> Any:
            for _ in range(600):
                time.sleep(0.1)
                yield b"x"

        return Answer(content=_Stream(slowly()))

    cluster.log = drip
    with ends_within(HANG_S):  # the log comes for a minute
        fail(connections, lab)
    seen = seen_of(database)
    assert "no answer within 2 s" in seen["note"] or "no log" in seen["note"]
    assert seen["containers"][0]["exit_code"] == 3
    assert database.lab(lab)["status"] == "FAILED"


class _Stream(list[bytes]):
    """Parts that come one after the other."""

    def __init__(self, parts: Any) -> None:
        super().__init__()
        self._parts = parts

    def __iter__(self) -> Any:
        return self._parts


def test_without_a_pod_the_events_of_its_name_are_kept(
    connections: Connections, cluster: FakeCluster, database: Database, broker: Broker, lab: int
) -> None:
    def refuse_and_evict(path: str) -> None:
        if "/services/" in path:
            (pod_path,) = [p for p in cluster.objects if "/pods/" in p]
            cluster.add_event(cluster.objects.pop(pod_path), reason="Evicted", message="The node is full")

    cluster.pod_status = {"phase": "Pending"}
    cluster.on_create = refuse_and_evict
    fail(connections, lab)
    seen = seen_of(database)
    assert seen["note"] == "the lab had no Pod"
    assert [event["reason"] for event in seen["events"]] == ["Evicted"]
    assert broker.depth(DEAD_LETTER_QUEUE) == 1


def test_the_platforms_own_events_are_no_evidence(
    connections: Connections, cluster: FakeCluster, database: Database, lab: int
) -> None:
    cluster.pod_status = CRASHED

    def happen(path: str) -> None:
        if "/pods/" in path:
            cluster.add_event(cluster.objects[path], reason="BackOff", reportingComponent="kubelet")
            cluster.add_event(cluster.objects[path], reason="LabProgramEnds", reportingComponent=COMPONENT)

    cluster.on_create = happen
    fail(connections, lab)
    assert [event["reason"] for event in seen_of(database)["events"]] == ["BackOff"]
