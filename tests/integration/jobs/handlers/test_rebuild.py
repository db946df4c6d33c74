"""A RUNNING lab whose Service or NetworkPolicy was deleted gets it again, by a sync and by a repair."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.config.manifests import NETWORK_POLICY_TEMPLATE
from jobs.config.stored import DEFAULTS
from jobs.handlers.context import Connections
from jobs.handlers.create import create_lab
from jobs.verify.repairs import ALWAYS
from tests.support.cluster.fake_cluster import FakeCluster
from tests.support.database.postgres import Database
from tests.support.factories import make_payload
from tests.support.http_server import Answer, status_object
from tests.support.labs.creates import context_of, name_of
from tests.support.labs.syncing import Sync, status
from tests.support.labs.verifying import Actions, Verify, age, path_of, quick
from tests.support.store import Bucket

KINDS = ("Service", "NetworkPolicy")
RBAC_SAYS_NO = 'networkpolicies is forbidden: User "u" cannot create resource "networkpolicies"'


def started(connections: Connections, database: Database) -> int:
    """Return a lab that a create has made RUNNING."""
    lab = database.add_lab()
    create_lab(context_of(connections, lab), make_payload(lab_instance_id=lab))
    assert status(database, lab) == "RUNNING"
    return lab


def take(cluster: FakeCluster, lab: int, kind: str) -> None:
    """Delete an object of a lab, as somebody does by hand."""
    del cluster.objects[path_of(kind, name_of(lab))]


def bereft(connections: Connections, cluster: FakeCluster, database: Database, kind: str) -> int:
    """Return a RUNNING lab that has been without an object for longer than the grace age."""
    lab = started(connections, database)
    take(cluster, lab, kind)
    age(database, created=())
    return lab


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_deleted_beside_the_pod_is_as_it_was(
    synced: Sync, connections: Connections, cluster: FakeCluster, database: Database, kind: str
) -> None:
    lab = started(connections, database)
    path = path_of(kind, name_of(lab))
    before, url = cluster.objects.pop(path), database.lab(lab)["connection_url"]
    age(database, created=())
    assert synced(dry_run=True)["would_repair"] == {"object_gone": 1}
    assert path not in cluster.objects
    result = synced()
    assert (result["repaired"], result["left"]) == ({"object_gone": 1}, 0)
    now = cluster.objects[path]
    assert now["spec"] == before["spec"]
    assert [now["metadata"][key] for key in ("labels", "annotations", "ownerReferences")] == [
        before["metadata"][key] for key in ("labels", "annotations", "ownerReferences")
    ]
    row = database.lab(lab)
    assert (row["status"], row["connection_url"]) == ("RUNNING", url)
    (repair,) = (run for run in database.ledger() if run["details"].get("difference"))
    assert (repair["lab_instance_id"], repair["details"]["done"]) == (lab, "made it again")
    assert database.rows("SELECT * FROM notifications") == []
    assert synced()["found"] == {}


@pytest.mark.parametrize("free", [True, False], ids=["free", "taken"])
def test_a_service_gets_the_address_that_its_student_knows_if_it_is_free(
    synced: Sync,
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    free: bool,
) -> None:
    lab = bereft(connections, cluster, database, "Service")
    asked_for: list[str | None] = []
    create = cluster._create

    def creating(collection: str, manifest: dict[str, Any]) -> Answer:
        address = manifest["spec"].get("clusterIP")
        asked_for.append(address)
        if address is None or free:
            return create(collection, manifest)
        return Answer(422, status_object(422, "Invalid", "provided IP is already allocated"))

    monkeypatch.setattr(cluster, "_create", creating)
    database.rows("UPDATE lab_instances SET connection_url = 'http://10.96.0.9:80/' WHERE id = %s", lab)
    assert synced()["repaired"] == {"object_gone": 1}
    assert asked_for == (["10.96.0.9"] if free else ["10.96.0.9", None])
    # Whatever address the cluster gave is in the row.
    assert database.lab(lab)["connection_url"] == f"http://127.0.0.1:{cluster.port}/"


def forget_request(database: Database, lab: int) -> None:
    database.rows("UPDATE task_ledger SET details = details - 'request' WHERE lab_instance_id = %s", lab)


def test_a_lab_of_which_nobody_knows_the_request_ends_without_its_policy_and_goes_on_without_its_service(
    synced: Sync, connections: Connections, cluster: FakeCluster, database: Database
) -> None:
    bare, deaf, fine = (started(connections, database) for _ in range(3))
    for lab, kind in ((bare, "NetworkPolicy"), (deaf, "Service")):
        forget_request(database, lab)
        take(cluster, lab, kind)
    age(database, created=())
    result = synced()
    assert (result["repaired"], result["left"]) == ({"object_gone": 1}, 1)
    assert [status(database, lab) for lab in (bare, deaf, fine)] == ["FAILED", "RUNNING", "RUNNING"]
    told = database.rows("SELECT event_type, cause FROM notifications ORDER BY lab_instance_id")
    assert [(row["event_type"], row["cause"]) for row in told] == [
        ("lab.failed", "object_gone"),
        ("lab.unreachable", "service_gone"),
    ]


def test_policies_of_a_whole_class_are_made_again_once_the_template_is_right(
    synced: Sync, connections: Connections, cluster: FakeCluster, database: Database, bucket: Bucket
) -> None:
    labs = [started(connections, database) for _ in range(ALWAYS + 2)]
    for lab in labs:
        take(cluster, lab, "NetworkPolicy")
    age(database, created=())
    bucket.put(NETWORK_POLICY_TEMPLATE, b"kind: [")
    assert (synced()["repaired"], synced()["left"]) == ({}, len(labs))
    bucket.put(NETWORK_POLICY_TEMPLATE, (DEFAULTS / NETWORK_POLICY_TEMPLATE).read_bytes())
    assert synced()["repaired"] == {"object_gone": len(labs)}
    assert {status(database, lab) for lab in labs} == {"RUNNING"}


def test_of_a_class_whose_requests_nobody_knows_few_labs_end_in_a_run(
    synced: Sync, connections: Connections, cluster: FakeCluster, database: Database
) -> None:
    labs = [started(connections, database) for _ in range(ALWAYS + 2)]
    for lab in labs:
        forget_request(database, lab)
        take(cluster, lab, "NetworkPolicy")
    age(database, created=())
    result = synced()
    assert (result["repaired"], result["left"]) == ({"object_gone": ALWAYS}, 2)
    assert [status(database, lab) for lab in labs].count("FAILED") == ALWAYS


@pytest.mark.parametrize("reason", ["Invalid", "Forbidden"])
def test_a_policy_that_the_cluster_refuses_ends_its_lab_and_a_lack_of_rights_does_not(
    synced: Sync,
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    reason: str,
) -> None:
    lab = bereft(connections, cluster, database, "NetworkPolicy")
    refusals = {
        "Invalid": Answer(422, status_object(422, "Invalid", "spec is not valid")),
        "Forbidden": Answer(403, status_object(403, "Forbidden", RBAC_SAYS_NO)),
    }
    monkeypatch.setattr(cluster, "_create", lambda *_words: refusals[reason])
    synced()
    assert status(database, lab) == ("FAILED" if reason == "Invalid" else "RUNNING")


@pytest.mark.parametrize(
    ("answer", "tries"),
    [
        (Answer(422, status_object(422, "Invalid", "spec is not valid")), 4),
        (Answer(403, status_object(403, "Forbidden", RBAC_SAYS_NO)), None),
    ],
    ids=["refused", "no right"],
)
def test_a_refusal_of_all_ends_no_lab_and_is_told_once(
    synced: Sync,
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    tries: int | None,
) -> None:
    labs = [started(connections, database) for _ in range(4)]
    for lab in labs:
        take(cluster, lab, "NetworkPolicy")
    age(database, created=())
    asked: set[str] = set()

    def refusing(_collection: str, manifest: dict[str, Any]) -> Answer:
        asked.add(manifest["metadata"]["name"])
        return answer

    monkeypatch.setattr(cluster, "_create", refusing)
    for _ in range(2):
        assert synced()["repaired"] == {}
    assert {status(database, lab) for lab in labs} == {"RUNNING"}
    assert len(asked) == (tries or 1)
    (told,) = database.rows("SELECT event_type, facts FROM notifications")
    assert (told["event_type"], told["facts"]["labs"]) == ("platform.sync_refused", 4)


def test_an_api_server_that_does_not_answer_ends_no_lab(
    synced: Sync, connections: Connections, cluster: FakeCluster, database: Database
) -> None:
    lab = bereft(connections, cluster, database, "NetworkPolicy")
    cluster.unavailable.add(path_of("Pod", name_of(lab)))
    assert (synced()["left"], status(database, lab)) == (1, "RUNNING")
    cluster.unavailable.clear()
    assert (synced()["left"], status(database, lab)) == (0, "RUNNING")


@pytest.mark.parametrize("change", ["stop_requested_at = now()", "k8s_pod_name = 'other'"])
def test_a_lab_that_changed_since_the_look_gets_nothing(
    synced: Sync,
    before_repairs: Actions,
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    change: str,
) -> None:
    lab = bereft(connections, cluster, database, "Service")
    before_repairs.append(lambda: database.rows(f"UPDATE lab_instances SET {change} WHERE id = %s", lab))
    assert synced()["left"] == 1
    assert path_of("Service", name_of(lab)) not in cluster.objects


@pytest.mark.parametrize("store", [True, False], ids=["with templates", "without"])
def test_verify_makes_it_again_where_it_has_the_templates(
    verify: Verify,
    connections: Connections,
    cluster: FakeCluster,
    database: Database,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    store: bool,
) -> None:
    lab = bereft(connections, cluster, database, "Service")
    for name, value in bucket.environ.items():
        monkeypatch.setenv(name, value)
    if not store:
        monkeypatch.delenv("S3_ENDPOINT")
    found = verify(*quick("--repair"))
    done = found.done()[f"Service {name_of(lab)}"]
    if store:
        assert (found.code, done) == (0, "made it again")
    else:
        assert found.code == 1
        assert "S3_ENDPOINT: not set" in done
    assert status(database, lab) == "RUNNING"
