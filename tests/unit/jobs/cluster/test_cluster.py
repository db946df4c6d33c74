"""jobs.cluster.client against a scripted server: what a real API server cannot be made to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import jobs.cluster.client
from jobs.cluster.access import ClusterAccess
from jobs.cluster.client import ApiError, ApiUnavailable, Cluster
from tests.support.http_server import Answer, Script, ScriptedServer, scripted, status_object

Serve = Callable[[Script], tuple[Cluster, ScriptedServer]]
POD = {"metadata": {"name": "p", "uid": "u1", "resourceVersion": "5"}}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setattr(jobs.cluster.client, "BLIP_S", 1.0)
    with ExitStack() as stack:

        def start(script: Script) -> tuple[Cluster, ScriptedServer]:
            server = stack.enter_context(ScriptedServer(script))
            return Cluster(ClusterAccess(server.url, ca_pem="", token="t")), server

        yield start


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_an_overloaded_api_server_is_asked_again(serve: Serve, status: int) -> None:
    busy = Answer(status, status_object(status, "Busy", "later"))
    cluster, server = serve(scripted(busy, busy, Answer(content=POD)))
    assert cluster.get("/p") == POD
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "answer",
    [
        Answer(503, status_object(503, "ServiceUnavailable", "etcd is away")),
        Answer(500, b"<html>etcd is away</html>"),
        Answer(200, b"<html>a proxy's page</html>"),
        Answer(200, POD, broken=True),
    ],
    ids=["503", "HTML", "no JSON", "broken off"],
)
def test_an_api_server_that_stays_away_is_unavailable(serve: Serve, answer: Answer) -> None:
    cluster, server = serve(scripted(answer))
    with pytest.raises(ApiUnavailable, match="GET /p"):
        cluster.get("/p")
    assert len(server.requests) > 1


def test_a_manifest_with_an_unknown_field_is_refused_although_the_server_says_500(serve: Serve) -> None:
    said = (
        "failed to create typed patch object (labs/p; /v1, Kind=Pod): .spec.x: field not declared in schema"
    )
    cluster, server = serve(scripted(Answer(500, {"kind": "Status", "message": said})))
    with pytest.raises(ApiError, match="field not declared"):
        cluster.apply("/p", POD)
    assert len(server.requests) == 1


def test_nobody_listening_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.cluster.client, "BLIP_S", 0.3)
    with pytest.raises(ApiUnavailable, match="GET /p"):
        Cluster(ClusterAccess("http://127.0.0.1:1", ca_pem="")).get("/p")


@pytest.mark.parametrize("status", [400, 403, 409, 422])
def test_a_refusal_is_not_repeated(serve: Serve, status: int) -> None:
    cluster, server = serve(scripted(Answer(status, status_object(status, "Reason", "why"))))
    with pytest.raises(ApiError) as caught:
        cluster.apply("/p", POD)
    assert (caught.value.status, caught.value.reason, caught.value.message) == (status, "Reason", "why")
    assert len(server.requests) == 1


RBAC_SAYS_NO = (
    'pods is forbidden: User "u" cannot list resource "pods" in API group "" in the namespace "labs"'
)


NO_ACCESS = [(403, "Forbidden", RBAC_SAYS_NO), (401, "Unauthorized", "Unauthorized")]


@pytest.mark.parametrize("no", NO_ACCESS, ids=["roles", "accounts"])
def test_an_api_server_that_has_not_read_everything_yet_is_asked_again(
    serve: Serve, no: tuple[int, str, str]
) -> None:
    refused = Answer(no[0], status_object(*no))
    cluster, server = serve(scripted(refused, refused, Answer(content=POD)))
    assert cluster.apply("/p", POD) == POD
    assert len(server.requests) == 3


@pytest.mark.parametrize("no", NO_ACCESS, ids=["roles", "accounts"])
def test_a_lasting_refusal_of_access_is_believed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, no: tuple[int, str, str]
) -> None:
    monkeypatch.setattr(jobs.cluster.client, "BLIP_S", 0.5)
    cluster, server = serve(scripted(Answer(no[0], status_object(*no))))
    with pytest.raises(ApiError) as caught:
        cluster.get("/p")
    assert (caught.value.status, caught.value.message) == (no[0], no[2])
    assert len(server.requests) > 1


QUOTA_CHANGED = (
    'Operation cannot be fulfilled on resourcequotas "labs": the object has been modified; please apply your'
    " changes to the latest version and try again"
)


def test_a_quota_that_changed_while_it_was_counted_is_asked_again(serve: Serve) -> None:
    conflict = Answer(409, status_object(409, "Conflict", QUOTA_CHANGED))
    cluster, server = serve(scripted(conflict, conflict, Answer(201, POD)))
    assert cluster.create("/p", POD) == POD
    assert len(server.requests) == 3


def test_a_quota_that_changed_is_no_object_of_that_name(serve: Serve) -> None:
    cluster, _ = serve(scripted(Answer(409, status_object(409, "Conflict", QUOTA_CHANGED))))
    with pytest.raises(ApiError, match="409 Conflict"):
        cluster.create_once("/p", POD, timeout_s=5)


def test_a_quota_that_changes_all_the_time_is_a_conflict(serve: Serve) -> None:
    cluster, server = serve(scripted(Answer(409, status_object(409, "Conflict", QUOTA_CHANGED))))
    with pytest.raises(ApiError, match="409 Conflict: Operation cannot be fulfilled"):
        cluster.create("/p", POD)
    assert len(server.requests) > 1


@pytest.mark.parametrize("body", [b"", b"[1]", b"\xff", b'"text"'])
def test_a_refusal_without_a_status_object_is_still_one(serve: Serve, body: bytes) -> None:
    cluster, _ = serve(scripted(Answer(403, body)))
    with pytest.raises(ApiError) as caught:
        cluster.get("/p")
    assert caught.value.status == 403


def test_a_missing_object_is_none(serve: Serve) -> None:
    cluster, _ = serve(scripted(Answer(404, status_object(404, "NotFound", "no"))))
    assert cluster.get("/p") is None


def test_apply_is_server_side_strict_and_takes_no_field_over(serve: Serve) -> None:
    cluster, server = serve(scripted(Answer(content=POD)))
    cluster.apply("/p", {"kind": "Pod"})
    (request,) = server.requests
    assert (request.method, request.json()) == ("PATCH", {"kind": "Pod"})
    assert request.path == "/p?fieldManager=autolabs-jobs&fieldValidation=Strict"
    assert request.headers["content-type"] == "application/apply-patch+yaml"
    assert request.headers["authorization"] == "Bearer t"


@pytest.mark.parametrize("status", [200, 404, 409])
def test_delete_names_the_uid_and_accepts_that_it_is_gone(serve: Serve, status: int) -> None:
    cluster, server = serve(scripted(Answer(status, status_object(status, "", ""))))
    cluster.delete("/p", uid="u1", grace_s=0)
    body = server.requests[0].json()
    assert (body["preconditions"], body["gracePeriodSeconds"]) == ({"uid": "u1"}, 0)


def test_a_delete_that_is_forbidden_is_an_error(serve: Serve) -> None:
    cluster, _ = serve(scripted(Answer(403, status_object(403, "Forbidden", "cannot"))))
    with pytest.raises(ApiError):
        cluster.delete("/p", uid="u1", grace_s=None)


def events(*names: str) -> list[dict[str, Any]]:
    return [{"type": name, "object": POD} for name in names]


def watch(cluster: Cluster) -> Iterator[tuple[str, dict[str, Any]]]:
    return cluster.watch("/pods", resource_version="5", timeout_s=3, fieldSelector="metadata.name=p")


def test_a_watch_yields_events_as_they_come(serve: Serve) -> None:
    cluster, server = serve(scripted(Answer(content=events("ADDED", "MODIFIED", "DELETED"))))
    assert [event for event, _ in watch(cluster)] == ["ADDED", "MODIFIED", "DELETED"]
    assert "resourceVersion=5" in server.requests[0].path
    assert "timeoutSeconds=3" in server.requests[0].path


def test_events_may_be_cut_anywhere(serve: Serve) -> None:
    line = json.dumps(events("ADDED")[0]).encode() + b"\n"
    cluster, _ = serve(scripted(Answer(content=[line[:7], line[7:] + line[:1], line[1:]])))
    assert [event for event, _ in watch(cluster)] == ["ADDED", "ADDED"]


@pytest.mark.parametrize(
    "parts",
    [events("ADDED"), [*events("ADDED"), b'{"type": "MOD'], [*events("ADDED"), b"<html>\n"]],
    ids=["between events", "within an event", "no JSON"],
)
def test_a_watch_that_breaks_off_is_unavailable(serve: Serve, parts: list[Any]) -> None:
    cluster, _ = serve(scripted(Answer(content=parts, broken=True)))
    seen = []
    with pytest.raises(ApiUnavailable, match="watch of /pods broke"):
        seen += [event for event, _ in watch(cluster)]


@pytest.mark.parametrize(("status", "error"), [(410, ApiError), (429, ApiUnavailable), (500, ApiUnavailable)])
def test_a_watch_that_cannot_start_is_an_error(serve: Serve, status: int, error: type[Exception]) -> None:
    cluster, _ = serve(scripted(Answer(status, status_object(status, "Expired", "too old"))))
    with pytest.raises(error):
        list(watch(cluster))


def test_of_a_text_no_more_than_the_limit_is_read_and_the_connection_is_of_use_after_it(serve: Serve) -> None:
    cluster, _ = serve(scripted(Answer(content=b"x" * 5_000_000), Answer(content=POD)))
    assert cluster.read_text("/log", limit=100, timeout_s=5, tailLines="20") == "x" * 100
    assert cluster.get("/p") == POD


def test_a_text_is_asked_for_once_and_without_patience(serve: Serve) -> None:
    cluster, server = serve(scripted(Answer(503, status_object(503, "Busy", "later"))))
    with pytest.raises(ApiUnavailable, match="later"):
        cluster.read_text("/log", limit=100, timeout_s=5)
    assert len(server.requests) == 1


def test_a_huge_error_is_not_read_to_its_end(serve: Serve) -> None:
    cluster, _ = serve(scripted(Answer(403, b"x" * 5_000_000), Answer(content=POD)))
    with pytest.raises(ApiError) as caught:
        cluster.get("/p")
    assert len(caught.value.message) == 300
    assert cluster.get("/p") == POD


def test_an_object_that_is_there_is_not_created_again(serve: Serve) -> None:
    conflict = Answer(409, status_object(409, "AlreadyExists", "it is there"))
    cluster, server = serve(scripted(Answer(201, POD), conflict))
    assert [cluster.create_once("/pods", POD, timeout_s=5) for _ in range(2)] == [True, False]
    assert [(request.method, request.json()) for request in server.requests] == [("POST", POD)] * 2


def test_create_returns_the_object_and_is_strict(serve: Serve) -> None:
    conflict = Answer(409, status_object(409, "AlreadyExists", "it is there"))
    cluster, server = serve(
        scripted(Answer(503, status_object(503, "Busy", "later")), Answer(201, POD), conflict)
    )
    assert [cluster.create("/pods", POD) for _ in range(2)] == [POD, None]
    assert {request.path for request in server.requests} == {
        "/pods?fieldManager=autolabs-jobs&fieldValidation=Strict"
    }


def test_a_conflict_with_another_object_is_an_error(serve: Serve) -> None:
    cluster, _ = serve(scripted(Answer(409, status_object(409, "Conflict", "the quota has been modified"))))
    with pytest.raises(ApiError, match="quota"):
        cluster.create("/pods", POD)


def page(*names: str, after: str = "") -> Answer:
    items = [{"metadata": {"name": name}} for name in names]
    return Answer(content={"metadata": {"continue": after} if after else {}, "items": items})


GONE = Answer(410, status_object(410, "Expired", "The provided continue parameter is too old"))


def names_of(pages: Iterator[list[Any]]) -> list[list[str]]:
    return [[item["metadata"]["name"] for item in items] for items in pages]


def test_a_long_list_comes_in_pages(serve: Serve) -> None:
    cluster, server = serve(scripted(page("a", "b", after="x/1"), page("c")))
    assert names_of(cluster.list_pages("/pods", limit=2, labelSelector="k=v")) == [["a", "b"], ["c"]]
    assert [request.path for request in server.requests] == [
        "/pods?limit=2&labelSelector=k%3Dv",
        "/pods?limit=2&continue=x%2F1&labelSelector=k%3Dv",
    ]


def test_a_list_that_took_too_long_begins_anew(serve: Serve) -> None:
    cluster, _ = serve(scripted(page("a", after="x"), GONE, page("a", after="y"), page("b")))
    assert names_of(cluster.list_pages("/pods", limit=1)) == [["a"], ["a"], ["b"]]


def test_a_list_that_always_takes_too_long_ends(serve: Serve) -> None:
    answers = [answer for _ in range(9) for answer in (page("a", after="x"), GONE)]
    cluster, server = serve(scripted(*answers))
    with pytest.raises(ApiError, match="410 Expired"):
        list(cluster.list_pages("/pods", limit=1))
    assert len(server.requests) == 8


def test_the_servers_time_is_that_of_its_last_answer(serve: Serve) -> None:
    cluster, _ = serve(scripted(Answer(content=POD, ahead_s=-3600)))
    with pytest.raises(ApiUnavailable, match="without the server's time"):
        _ = cluster.answered_at
    cluster.get("/p")
    behind = datetime.now(timezone.utc) - cluster.answered_at
    assert timedelta(seconds=3600) <= behind < timedelta(seconds=3630)
