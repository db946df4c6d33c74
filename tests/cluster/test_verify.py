"""`autolabs verify` on the real cluster: clean after labs come and go, and every drift by hand is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import jobs.cluster.client
from dispatcher import Dispatcher
from dispatcher.broker import topology
from dispatcher.tasks import DELETE_LAB_POD
from tests.support.clearing import clear, failed_since
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.containers.container import ROOT
from tests.support.containers.in_process import Answer, run_command
from tests.support.labs.own_labs import HANGS_S, OwnLabs
from tests.support.labs.verifying import age, used_up_to
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(3 * HANGS_S)
#: What is a second old counts, so that nothing has to be waited for.
GRACE = ("--grace", "1", "--settle", "1")


@dataclass(frozen=True)
class Verified:
    code: int
    report: dict[str, Any]
    errors: str

    @property
    def said(self) -> set[tuple[int | None, str, str]]:
        """Lab, kind and what it is about of each difference; nothing where it could not look."""
        return {
            (one["lab_instance_id"], one["kind"], one["object"].partition(" ")[0])
            for one in self.report.get("differences", ())
        }


class VerifiedLabs(OwnLabs):
    def verify(self, *words: str, **environ: str) -> Verified:
        return self._verified(
            run_command(
                *("verify", "--json", *GRACE, *words), environ=self.platform.containers.environ | environ
            )
        )

    def verify_as_a_process(self, *words: str) -> Verified:
        done = subprocess.run(
            [sys.executable, "-m", "console", "verify", "--json", *GRACE, *words],
            cwd=ROOT,
            env=self.platform.containers.environ,
            capture_output=True,
            text=True,
            timeout=HANGS_S,
            check=False,
        )
        return self._verified(Answer(done.returncode, done.stdout, done.stderr))

    @staticmethod
    def _verified(done: Answer) -> Verified:
        return Verified(done.code, json.loads(done.out) if done.out else {}, done.err)

    def repaired(self, *expected: tuple[int | None, str, str], words: tuple[str, ...] = ()) -> dict[str, Any]:
        """Let one look find these, another repair them, a third find nothing; return the second's report."""
        looked = eventually(lambda: self._finds(expected), HANGS_S, what=f"{expected} found")
        assert looked.code == 1
        repaired = self.verify("--repair", *words)
        assert (repaired.code, repaired.said) == (0, set(expected)), repaired
        eventually(lambda: self.verify().code == 0, HANGS_S, what="a clean platform")
        return repaired.report

    def _finds(self, expected: tuple[tuple[int | None, str, str], ...]) -> Verified | None:
        seen = self.verify()
        return seen if seen.said == set(expected) else None


@pytest.fixture
def own(request: pytest.FixtureRequest, own_platform: OwnPlatform) -> Iterator[VerifiedLabs]:
    """Labs of one test, which ends on a platform in order; what a failed one leaves is none of the next."""
    before = request.session.testsfailed
    with Dispatcher(own_platform.broker.url) as dispatcher:
        own = VerifiedLabs(own_platform, dispatcher)
        yield own
        seen = None if failed_since(request.session, before) else own.verify()
    in_order = seen is not None and (seen.code, seen.said) == (0, set())
    if not in_order:
        clear(own_platform)
    assert seen is None or in_order, seen


def test_the_command_looks_and_says_by_its_exit_code_what_it_found(own: VerifiedLabs) -> None:
    assert own.verify_as_a_process().code == 0
    waiting = own.platform.database.add_lab()
    age(own.platform.database)
    seen = own.verify_as_a_process()
    assert (seen.code, seen.said) == (1, {(waiting, "request_lost", "row")}), seen
    own.platform.database.rows("DELETE FROM lab_instances WHERE id = %s", waiting)


def test_labs_that_come_and_go_leave_it_clean(own: VerifiedLabs) -> None:
    first, second = own.create(), own.create()
    seen = own.verify()
    assert (seen.code, seen.report["checked"]) == (0, {"rows": 2, "objects": 6, "messages": 0})
    own.delete(first)
    own.delete(second)
    assert own.verify().code == 0
    assert own.names_of(first) == []


def test_an_operators_kubeconfig_serves_as_well(own: VerifiedLabs) -> None:
    lab = own.create()
    seen = own.verify(KUBECONFIG=os.environ["KUBECONFIG"])
    assert (seen.code, seen.report["checked"]["objects"]) == (0, 3)
    own.delete(lab)


def test_a_deleted_pod(own: VerifiedLabs) -> None:
    lab, other = own.create(), own.create()
    own.kubectl("delete", "pod", own.name(lab), "--grace-period=1")
    own.repaired((lab, "pod_gone", "Pod"))
    assert own.status(lab) == "FAILED"
    own.wait_gone(lab)
    (notification,) = own.platform.database.rows(
        "SELECT cause, told FROM notifications WHERE lab_instance_id = %s", lab
    )
    assert notification == {"cause": "pod_gone", "told": "admin"}
    own.delete(other)


@pytest.mark.parametrize(("kind", "words"), [("Service", ("--force",)), ("NetworkPolicy", ())])
@pytest.mark.parametrize("known", [True, False], ids=["made again", "of an unknown request"])
def test_a_deleted_object_beside_the_pod(
    own: VerifiedLabs, kind: str, words: tuple[str, ...], known: bool
) -> None:
    lab = own.create()
    specs = own.specs_beside(lab)
    if not known:
        own.platform.database.rows("UPDATE task_ledger SET details = details - 'request'")
    own.kubectl("delete", kind.lower(), own.name(lab))
    own.repaired((lab, "object_gone", kind), words=words)
    assert own.status(lab) == ("RUNNING" if known else "FAILED")
    if known:
        assert own.specs_beside(lab) == specs
        own.wait_answers(lab)
        own.delete(lab)
    own.wait_gone(lab)


def test_a_pod_that_its_node_ended(own: VerifiedLabs) -> None:
    lab = own.create()
    own.kubectl("patch", "pod", own.name(lab), "--patch", json.dumps({"spec": {"activeDeadlineSeconds": 1}}))
    report = own.repaired((lab, "pod_ended", "Pod"))
    assert "is over: Failed DeadlineExceeded" in report["differences"][0]["is"]
    assert own.status(lab) == "FAILED"
    own.wait_gone(lab)


THREE = ("Pod", "Service", "NetworkPolicy")


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM lab_instances WHERE id = %s",
        "UPDATE lab_instances SET status = 'STOPPED', stopped_at = now() - interval '1 hour' WHERE id = %s",
        "UPDATE lab_instances SET status = 'FAILED', failed_at = now() - interval '1 hour' WHERE id = %s",
    ],
    ids=["deleted", "STOPPED", "FAILED"],
)
def test_a_row_changed_by_hand(own: VerifiedLabs, change: str) -> None:
    lab = own.create()
    own.platform.database.rows(change, lab)
    own.repaired(*((lab, "orphan", kind) for kind in THREE))
    own.wait_gone(lab)


def test_a_stray_pod_with_the_labels_of_a_lab_and_one_of_somebody_else(own: VerifiedLabs) -> None:
    lab = own.create()
    used_up_to(own.platform.database, 999_999)
    own.stray(f"lab-instance-{lab}-stray", lab)
    own.stray("lab-instance-999999-stray", lab, lab_instance_id="999999")
    own.stray("theirs", lab, **{"app.kubernetes.io/managed-by": "helm", "lab_instance_id": "999998"})
    own.repaired((lab, "second_object", "Pod"), (999999, "orphan", "Pod"))
    own.wait_gone(999999)
    assert own.names_of(999998) == ["Pod/theirs"]
    assert own.status(lab) == "RUNNING"
    own.kubectl("delete", "pod", "theirs", "--grace-period=1")
    own.delete(lab)


def test_a_message_for_a_stopped_lab_that_nobody_consumes(own: VerifiedLabs) -> None:
    lab = own.create()
    own.delete(lab)
    old = datetime.now(timezone.utc) - timedelta(hours=1)
    kwargs = {"lab_instance_id": lab}
    task_id = own.platform.broker.publish_task(name=DELETE_LAB_POD, kwargs=kwargs, published_at=old)
    age(own.platform.database)
    report = own.repaired((lab, "useless_message", "message"))
    assert report["differences"][0]["object"] == f"message {task_id}"
    assert own.platform.broker.is_empty()


def test_a_request_and_a_stop_whose_messages_are_gone(own: VerifiedLabs) -> None:
    lab, waiting = own.create(), own.platform.database.add_lab()
    own.platform.database.rows("UPDATE lab_instances SET stop_requested_at = now() WHERE id = %s", lab)
    age(own.platform.database, created=[waiting])
    seen = own.verify()
    assert seen.said == {(lab, "stop_lost", "row"), (waiting, "request_lost", "row")}

    def repaired() -> bool:
        seen = own.verify("--repair", RABBITMQ_API_URL=os.environ["RABBITMQ_API_URL"])
        assert seen.code == 0, seen
        return own.status(waiting) == "FAILED"

    # Undecided for as long as a broker that is short of time says that the create of `lab` is held.
    eventually(repaired, HANGS_S, what="the waiting lab FAILED")
    own.serve(topology.QUEUE_HIGH)
    assert own.status(lab) == "STOPPED"


def test_the_cluster_of_somebody_else_is_left_alone(own: VerifiedLabs) -> None:
    labs = [own.create() for _ in range(3)]
    seen = own.verify("--repair", LAB_NAMESPACE="labs", KUBECONFIG=os.environ["KUBECONFIG"])
    assert seen.code == 1
    assert seen.report["refused"]
    assert [own.status(lab) for lab in labs] == ["RUNNING"] * 3
    for lab in labs:
        own.delete(lab)


def test_a_cluster_that_gives_no_access_is_named(own: VerifiedLabs, monkeypatch: pytest.MonkeyPatch) -> None:
    # An API server that begins refuses everybody for a moment, which this one does not.
    monkeypatch.setattr(jobs.cluster.client, "BLIP_S", 0.5)
    seen = own.verify(LAB_NAMESPACE="kube-system")
    assert seen.code == 3
    assert "could not look at the cluster: 403 Forbidden" in seen.errors
