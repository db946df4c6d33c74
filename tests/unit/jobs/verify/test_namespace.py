"""Whether a namespace is there, asked by who may look into it and by who may only list in it."""

from __future__ import annotations

import pytest

import jobs.cluster.client
from jobs.cluster.access import ClusterAccess
from jobs.cluster.client import ApiError, ApiUnavailable, Cluster
from jobs.verify.objects import namespace_exists
from tests.support.http_server import Answer, ScriptedServer, scripted, status_object

NAMESPACE = Answer(content={"kind": "Namespace", "metadata": {"name": "labs"}})
RBAC_SAYS_NO = 'namespaces "labs" is forbidden: User "u" cannot get resource "namespaces" in API group ""'


def answer(status: int, message: str) -> Answer:
    return Answer(status, status_object(status, "Reason", message))


def asked(*answers: Answer) -> tuple[bool, int]:
    """Return what is told, and how many requests that took."""
    with ScriptedServer(scripted(*answers)) as server:
        found = namespace_exists(Cluster(ClusterAccess(server.url, ca_pem="")), "labs")
        return found, len(server.requests)


@pytest.mark.parametrize(
    ("said", "found"),
    [(NAMESPACE, True), (answer(404, "not found"), False), (answer(403, RBAC_SAYS_NO), True)],
    ids=["there", "not there", "who asks may not know"],
)
def test_one_answer_is_enough(said: Answer, found: bool) -> None:
    assert asked(said) == (found, 1)


def test_a_busy_api_server_is_asked_again() -> None:
    assert asked(answer(503, "later"), NAMESPACE) == (True, 2)


def test_an_api_server_that_stays_away_and_one_that_knows_nobody_tell_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs.cluster.client, "BLIP_S", 0.3)
    with pytest.raises(ApiUnavailable):
        asked(answer(503, "later"))
    with pytest.raises(ApiError, match="Unauthorized"):
        asked(answer(401, "Unauthorized"))
