"""A lab's objects on a scripted API server: broken watches and races that a real one rarely shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

import jobs.cluster.client
import jobs.cluster.lab_objects
from dispatcher.failure_contract import Category
from jobs.cluster.access import ClusterAccess
from jobs.cluster.client import Cluster
from jobs.cluster.lab_objects import LabGone, LabObjects
from jobs.config import naming
from jobs.config.manifests import LabManifests
from jobs.errors import PermanentError, TransientError
from tests.support.http_server import Answer, Request, Script, ScriptedServer, status_object
from tests.support.waiting import HANG_S, ends_within

Serve = Callable[[Script], tuple[LabObjects, ScriptedServer]]
GONE = Answer(410, status_object(410, "Expired", "too old resource version"))
MISSING = Answer(404, status_object(404, "NotFound", "no"))


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setattr(jobs.cluster.client, "BLIP_S", 0.3)
    with ExitStack() as stack:

        def start(script: Script) -> tuple[LabObjects, ScriptedServer]:
            server = stack.enter_context(ScriptedServer(script))
            return LabObjects(Cluster(ClusterAccess(server.url, ca_pem="")), "labs"), server

        yield start


def make_object(
    kind: str = "Pod", *, uid: str = "u1", ready: bool = False, **metadata: Any
) -> dict[str, Any]:
    return {
        "kind": kind,
        "metadata": {
            "name": "lab",
            "uid": uid,
            "resourceVersion": "5",
            "labels": naming.lab_labels(7, 1, 2),
            "annotations": {naming.SPEC_HASH: "h"},
            **metadata,
        },
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
    }


def event(kind: str, seen: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "object": seen}


class Api:
    """Answers watches and reads of one object from two lists; the last answer stays."""

    def __init__(self, watches: list[Answer], reads: list[Answer]) -> None:
        self._watches, self._reads = watches, reads

    def __call__(self, request: Request) -> Answer:
        answers = self._watches if "watch=1" in request.path else self._reads
        return answers.pop(0) if len(answers) > 1 else answers[0]


def test_a_pod_that_becomes_ready_ends_the_wait(serve: Serve) -> None:
    stream = Answer(content=[event("MODIFIED", make_object()), event("MODIFIED", make_object(ready=True))])
    labs, _ = serve(Api([stream], [MISSING]))
    labs.wait_ready(make_object(), "image", timeout_s=HANG_S, meanwhile=lambda: None)


@pytest.mark.parametrize(
    "first",
    [
        GONE,
        Answer(429, status_object(429, "TooManyRequests", "slow down")),
        Answer(content=[], broken=True),
        Answer(content=[event("ERROR", status_object(410, "Expired", "too old"))]),
        Answer(content=[event("BOOKMARK", {"metadata": {"resourceVersion": "9"}})]),
    ],
    ids=["410", "429", "broken", "ERROR event", "ended"],
)
def test_a_watch_that_breaks_is_replaced_by_reading_the_object(serve: Serve, first: Answer) -> None:
    labs, _ = serve(Api([first], [Answer(content=make_object(ready=True))]))
    labs.wait_ready(make_object(), "image", timeout_s=HANG_S, meanwhile=lambda: None)


@pytest.mark.parametrize("watch", [GONE, Answer(content=[])], ids=["410", "ends at once"])
def test_a_watch_that_never_works_does_not_hammer_the_api_server(serve: Serve, watch: Answer) -> None:
    silent = make_object()
    silent["status"]["containerStatuses"] = [{"state": {"running": {}}}]
    labs, server = serve(Api([watch], [Answer(content=silent)]))
    with ends_within(), pytest.raises(PermanentError, match="does not answer"):
        labs.wait_ready(make_object(), "image", timeout_s=1, meanwhile=lambda: None)
    assert len(server.requests) <= 12


def test_a_program_that_began_late_is_not_said_to_be_silent(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that only the pauses between two looks move: no load of the machine makes it later."""
    creating, late = make_object(), make_object()
    late["status"]["containerStatuses"] = [{"state": {"running": {}}}]
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(slept), sleep=slept.append)
    monkeypatch.setattr(jobs.cluster.lab_objects, "time", clock)

    def answer(request: Request) -> Answer:
        if "watch=1" in request.path:
            return GONE
        return Answer(content=late if sum(slept) > 1.3 else creating)

    labs, _ = serve(answer)
    with pytest.raises(TransientError, match="longer than usual to start") as caught:
        labs.wait_ready(make_object(), "image", timeout_s=2.4, meanwhile=lambda: None)
    assert caught.value.evidence == "after 2 s: began to run late"


@pytest.mark.parametrize(
    ("watch", "read"),
    [
        (Answer(content=[event("DELETED", make_object())]), make_object(ready=True)),
        (GONE, None),
        (GONE, make_object(uid="u2", ready=True)),
    ],
    ids=["DELETED event", "not there any more", "replaced by another"],
)
def test_a_pod_that_goes_while_it_starts_is_gone(
    serve: Serve, watch: Answer, read: dict[str, Any] | None
) -> None:
    labs, _ = serve(Api([watch], [Answer(content=read) if read else MISSING]))
    with pytest.raises(LabGone):
        labs.wait_ready(make_object(), "image", timeout_s=HANG_S, meanwhile=lambda: None)


def test_a_pod_that_is_being_deleted_is_not_ready(serve: Serve) -> None:
    dying = make_object(ready=True, deletionTimestamp="2026-01-01T00:00:00Z")
    labs, _ = serve(Api([Answer(content=[event("DELETED", dying)])], [MISSING]))
    with pytest.raises(LabGone):
        labs.wait_ready(dying, "image", timeout_s=HANG_S, meanwhile=lambda: None)


def test_a_program_that_ends_because_its_pod_is_deleted_is_no_failure(serve: Serve) -> None:
    dying = make_object(deletionTimestamp="2026-01-01T00:00:00Z")
    dying["status"] = {"phase": "Succeeded"}
    stream = Answer(content=[event("MODIFIED", dying), event("DELETED", dying)])
    labs, _ = serve(Api([stream], [MISSING]))
    with pytest.raises(LabGone):
        labs.wait_ready(make_object(), "image", timeout_s=HANG_S, meanwhile=lambda: None)


def test_an_image_that_cannot_be_pulled_fails_at_once(serve: Serve) -> None:
    failed = make_object()
    failed["status"]["containerStatuses"] = [
        {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "x: not found"}}}
    ]
    labs, _ = serve(Api([Answer(content=[event("MODIFIED", failed)])], [MISSING]))
    with pytest.raises(PermanentError) as caught:
        labs.wait_ready(make_object(), "image", timeout_s=60, meanwhile=lambda: None)
    assert caught.value.category is Category.PERMANENT_IMAGE_ERROR


def test_an_api_server_that_stays_away_while_waiting_is_transient(serve: Serve) -> None:
    down = Answer(503, status_object(503, "ServiceUnavailable", "away"))
    labs, _ = serve(Api([down], [down]))
    with pytest.raises(TransientError) as caught:
        labs.wait_ready(make_object(), "image", timeout_s=60, meanwhile=lambda: None)
    assert caught.value.category is Category.TEMPORARY_NETWORK_ERROR


def test_objects_that_stay_are_named(serve: Serve) -> None:
    labs, _ = serve(Api([Answer(content=[])], [Answer(content=make_object())]))
    with pytest.raises(TransientError) as caught:
        labs.wait_gone([make_object()], timeout_s=0.2)
    assert caught.value.evidence == "still there: Pod lab"


def test_another_object_of_the_same_name_counts_as_gone(serve: Serve) -> None:
    labs, _ = serve(Api([GONE], [Answer(content=make_object(uid="u2"))]))
    labs.wait_gone([make_object()], timeout_s=HANG_S)


MANIFESTS = LabManifests(make_object(), make_object("Service"), make_object("NetworkPolicy"))


def methods(server: ScriptedServer) -> list[str]:
    return [request.method for request in server.requests]


def test_absent_objects_are_applied_pod_first_and_owned_by_it(serve: Serve) -> None:
    def api(request: Request) -> Answer:
        return MISSING if request.method == "GET" else Answer(content=request.json())

    labs, server = serve(api)
    labs.ensure(7, MANIFESTS, before_replacing=lambda: None)
    created = [request.json() for request in server.requests if request.method == "POST"]
    assert [item["kind"] for item in created] == ["Pod", "Service", "NetworkPolicy"]
    owners = [item["metadata"].get("ownerReferences") for item in created]
    assert owners[0] is None
    assert owners[1] == owners[2] == [{"apiVersion": "v1", "kind": "Pod", "name": "lab", "uid": "u1"}]


def test_objects_of_the_same_lab_and_spec_are_adopted(serve: Serve) -> None:
    owner = [{"apiVersion": "v1", "kind": "Pod", "name": "lab", "uid": "u1"}]

    def api(request: Request) -> Answer:
        if "/pods/" in request.path:
            return Answer(content=make_object())
        return Answer(content=make_object(ownerReferences=owner))

    labs, server = serve(api)
    labs.ensure(7, MANIFESTS, before_replacing=lambda: None)
    assert methods(server) == ["GET", "GET", "GET"]


@pytest.mark.parametrize(
    "labels",
    [{}, naming.lab_labels(8, 1, 2), {"lab_instance_id": "7", "app.kubernetes.io/managed-by": "Helm"}],
    ids=["none", "another lab's", "another manager's"],
)
def test_an_object_that_is_not_the_labs_is_left_alone(serve: Serve, labels: dict[str, str]) -> None:
    labs, server = serve(lambda _request: Answer(content=make_object(labels=labels)))
    with pytest.raises(PermanentError, match="taken by something else"):
        labs.ensure(7, MANIFESTS, before_replacing=lambda: None)
    assert methods(server) == ["GET"]


META = {"resourceVersion": "9"}
OWN, ANOTHERS = "a" * 20, "b" * 20
LABELLED = LabManifests(
    *(
        make_object(kind, labels=naming.lab_labels(7, 1, 2, OWN))
        for kind in ("Pod", "Service", "NetworkPolicy")
    )
)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (naming.lab_labels(7, 1, 2, ANOTHERS), f"by autolabs.io/object={ANOTHERS} instead of {OWN}"),
        (naming.lab_labels(7, 1, 3), "by student_id=3 instead of 2"),
        (naming.lab_labels(7, 9, 2), "by lab_id=9 instead of 1"),
    ],
    ids=["another time", "another student", "another lab"],
)
def test_an_object_of_another_lab_with_the_same_id_is_refused_and_left(
    serve: Serve, labels: dict[str, str], says: str
) -> None:
    labs, server = serve(lambda _request: Answer(content=make_object(labels=labels)))
    with pytest.raises(PermanentError, match="taken by something else") as caught:
        labs.ensure(7, LABELLED, before_replacing=lambda: None)
    assert says in caught.value.evidence
    assert methods(server) == ["GET"]


@pytest.mark.parametrize("pod_label", [OWN, None], ids=["this release", "the release before"])
def test_service_and_policy_select_what_the_pod_carries(serve: Serve, pod_label: str | None) -> None:
    """The Pod of a lab that runs since the release before is adopted, and has no object label."""
    pod = make_object(labels=naming.lab_labels(7, 1, 2, pod_label))

    def api(request: Request) -> Answer:
        if request.method == "GET":
            return Answer(content=pod) if "/pods/" in request.path else MISSING
        return Answer(content=request.json())

    labs, server = serve(api)
    labs.ensure(7, LABELLED, before_replacing=lambda: None)
    service, policy = [request.json() for request in server.requests if request.method == "POST"]
    selector = {"lab_instance_id": "7"} | ({naming.OBJECT: OWN} if pod_label else {})
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == selector
    for item in (service, policy):
        assert item["metadata"]["labels"].get(naming.OBJECT) == pod_label


def test_a_stop_leaves_the_objects_of_another_lab_with_the_same_id(serve: Serve) -> None:
    """An object without the label may be its own, of the release before."""
    pods = [
        make_object(name=name, labels=naming.lab_labels(7, 1, 2, label))
        for name, label in (("own", OWN), ("old", None), ("other", ANOTHERS))
    ]

    def api(request: Request) -> Answer:
        if request.method == "DELETE":
            return Answer(content={})
        return Answer(content={"items": pods if "/pods?" in request.path else [], "metadata": META})

    labs, _ = serve(api)
    whose = naming.LabIdentity(7, 1, 2, OWN)
    assert [item["metadata"]["name"] for item in labs.delete_lab(7, object_label=OWN)] == ["own", "old"]
    assert labs.delete_labs([whose]) == 2


@pytest.mark.parametrize(
    ("metadata", "phase"),
    [
        ({"annotations": {naming.SPEC_HASH: "older"}}, "Running"),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, "Running"),
        ({}, "Failed"),
        ({}, "Succeeded"),
    ],
    ids=["another spec", "being deleted", "failed", "ended"],
)
def test_an_object_of_an_earlier_attempt_is_replaced(
    serve: Serve, metadata: dict[str, Any], phase: str
) -> None:
    old = make_object(uid="old", **metadata)
    old["status"]["phase"] = phase
    deleted: list[str] = []

    def api(request: Request) -> Answer:
        if request.method == "DELETE":
            deleted.append(request.json()["preconditions"]["uid"])
            return Answer(content={})
        if "watch=1" in request.path:
            return Answer(content=[event("DELETED", old)])
        if request.method == "GET":
            return Answer(content=old) if "/pods/" in request.path and not deleted else MISSING
        return Answer(content=request.json())

    labs, server = serve(api)
    pod, _ = labs.ensure(7, MANIFESTS, before_replacing=lambda: None)
    assert deleted == ["old"]
    assert pod["metadata"]["uid"] == "u1"
    assert methods(server).count("POST") == 3


def test_an_old_object_that_stays_is_not_waited_for_without_end(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.cluster.lab_objects, "GONE_TIMEOUT_S", 0.3)
    old = make_object(uid="old", deletionTimestamp="2026-01-01T00:00:00Z")
    labs, server = serve(lambda request: Answer(content=[] if "watch=1" in request.path else old))
    with pytest.raises(TransientError) as caught:
        labs.ensure(7, MANIFESTS, before_replacing=lambda: None)
    assert caught.value.evidence == "still there: Pod lab"
    assert "POST" not in methods(server)


def test_one_object_that_cannot_be_deleted_keeps_no_other(serve: Serve) -> None:
    deleted: list[str] = []

    def api(request: Request) -> Answer:
        if request.method == "DELETE":
            deleted.append(request.path.rpartition("/")[2])
            refused = Answer(422, status_object(422, "Invalid", "a policy denied request: no"))
            return refused if deleted[-1] == "stray" else Answer(content={})
        stray, own = make_object(), make_object()
        stray["metadata"]["name"] = "stray"
        items = [stray, own] if "/pods" in request.path else []
        return Answer(content={"metadata": {"resourceVersion": "1"}, "items": items})

    labs, _ = serve(api)
    with pytest.raises(PermanentError) as caught:
        labs.delete_lab(7)
    assert "a policy denied request" in caught.value.evidence
    assert deleted == ["stray", "lab"]


def test_deleting_a_lab_takes_only_what_the_selector_finds(serve: Serve) -> None:
    def api(request: Request) -> Answer:
        if request.method == "DELETE":
            return Answer(content={})
        items = [make_object()] if "/pods" in request.path else []
        return Answer(content={"metadata": {"resourceVersion": "1"}, "items": items})

    labs, server = serve(api)
    assert [item["kind"] for item in labs.delete_lab(7, grace_s=0)] == ["Pod"]
    deletes = [request for request in server.requests if request.method == "DELETE"]
    assert [request.path for request in deletes] == ["/api/v1/namespaces/labs/pods/lab"]
    assert deletes[0].json()["gracePeriodSeconds"] == 0


def test_what_is_to_be_kept_is_spared(serve: Serve) -> None:
    ours, winners = make_object(), make_object(uid="u2", name="winner")

    def api(request: Request) -> Answer:
        if request.method == "DELETE":
            return Answer(content={})
        items = [] if "/networkpolicies" in request.path else [ours, winners]
        return Answer(content={"metadata": {"resourceVersion": "1"}, "items": items})

    labs, server = serve(api)
    found = labs.delete_lab(7, grace_s=0, keep="winner")
    assert [(item["kind"], item["metadata"]["name"]) for item in found] == [
        ("Pod", "lab"),
        ("Service", "lab"),
    ]
    assert [request.path for request in server.requests if request.method == "DELETE"] == [
        "/api/v1/namespaces/labs/pods/lab",
        "/api/v1/namespaces/labs/services/lab",
    ]


def test_a_selector_that_returns_foreign_objects_deletes_nothing(serve: Serve) -> None:
    foreign = make_object(labels=naming.lab_labels(8, 1, 2))
    answer = Answer(content={"metadata": {"resourceVersion": "1"}, "items": [foreign]})
    labs, server = serve(lambda _request: answer)
    with pytest.raises(RuntimeError, match="foreign objects"):
        labs.delete_lab(7)
    assert "DELETE" not in methods(server)
