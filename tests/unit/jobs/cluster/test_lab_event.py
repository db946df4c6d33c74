"""The Event of a failed lab, and an API server that does not take it."""

from __future__ import annotations

import threading

import pytest

from jobs.cluster import evidence
from jobs.cluster.access import ClusterAccess
from jobs.cluster.client import Cluster
from jobs.cluster.evidence import event_reason, make_event, post_event
from jobs.cluster.pod_facts import MAX_BYTES, bounded
from jobs.failures import Failure
from tests.support.http_server import Answer, Request, ScriptedServer, scripted, status_object

ERROR = Failure.IMAGE_NOT_LOADABLE.error(image="й" * 2000)
EVENT = make_event(ERROR, namespace="labs", pod_name="lab-instance-1-x", pod_uid="u")


def test_reasons_are_names_as_kubernetes_has_them() -> None:
    assert event_reason("image_not_loadable") == "LabImageNotLoadable"
    assert all(event_reason(failure.cause).isalpha() for failure in Failure)
    assert all(len(event_reason(failure.cause)) <= 128 for failure in Failure)


def test_a_long_message_is_cut_between_characters() -> None:
    size = len(EVENT["message"].encode())
    assert 1022 <= size <= 1024
    assert EVENT["message"].endswith("й")


def test_the_name_is_the_same_for_each_attempt_and_another_for_each_cause() -> None:
    other = make_event(Failure.NO_ROOM.error(), namespace="labs", pod_name="lab-instance-1-x", pod_uid=None)
    names = [event["metadata"]["name"] for event in (EVENT, other)]
    assert names == ["lab-instance-1-x.image-not-loadable", "lab-instance-1-x.no-room"]


@pytest.mark.parametrize(
    ("answer", "action"),
    [
        (Answer(201, {}), "event_posted"),
        (Answer(409, status_object(409, "AlreadyExists", "it is there")), "event_posted"),
        (Answer(403, status_object(403, "Forbidden", "no")), "event_missed"),
        (Answer(503, b"x" * 100_000), "event_missed"),
    ],
)
def test_what_becomes_of_it_is_a_line_in_the_log(
    answer: Answer, action: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with ScriptedServer(scripted(answer)) as server:
        post_event(Cluster(ClusterAccess(server.url, ca_pem="")), EVENT)
        (request,) = server.requests
    assert (request.path, request.json()) == ("/api/v1/namespaces/labs/events", EVENT)
    assert getattr(caplog.records[-1], "action", "") == action


def test_a_server_that_hangs_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(evidence, "EVENT_PATIENCE_S", 0.1)
    released = threading.Event()

    def hang(_request: Request) -> Answer:
        released.wait(10)
        return Answer(201, {})

    with ScriptedServer(hang) as server:
        post_event(Cluster(ClusterAccess(server.url, ca_pem="")), EVENT)
        released.set()
    assert getattr(caplog.records[-1], "action", "") == "event_missed"


def test_evidence_fits_however_its_characters_are_written() -> None:
    text = "\u4e16" * 400
    pod = {"name": "p", "message": text, "reason": text, "node": text}
    seen = {
        "pod": pod,
        "note": text * 3,
        "conditions": [{"message": text}] * 8,
        "log": {"lines": [text] * 20},
    }
    assert len(repr(bounded(seen)).encode("unicode_escape")) <= MAX_BYTES
    assert bounded({"pod": {"name": "p"}}) == {"pod": {"name": "p"}}
