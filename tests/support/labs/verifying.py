"""`autolabs verify` in this process: on a test's own servers, with what it printed."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import console.access
import jobs.cluster.client
import jobs.database
import jobs.database.connection
import jobs.verify.snapshot
from console.verify import command as verify_command
from dispatcher.interrupts import Stop
from jobs.cluster.access import ClusterAccess
from jobs.cluster.client import Cluster
from jobs.cluster.lab_objects import collections
from jobs.config.naming import lab_labels
from jobs.verify.differences import Difference
from jobs.verify.repairs import Repairs
from tests.support.broker.rabbitmq import Broker
from tests.support.cluster.fake_cluster import READY, FakeCluster
from tests.support.database.postgres import Database
from tests.support.http_server import ScriptedServer

#: What a test lets happen at a moment of a run.
Actions = list[Callable[[], object]]


@dataclass
class Verified:
    """One run of the command with --json."""

    code: int
    report: dict[str, Any]
    errors: str

    def said(self) -> list[tuple[int | None, str]]:
        """Return lab and kind of each difference."""
        return [(one["lab_instance_id"], one["kind"]) for one in self.report["differences"]]

    def done(self) -> dict[str, str]:
        """Return object -> what became of it."""
        return {one["object"]: one["done"] for one in self.report["differences"]}


class Verify:
    """Call it with words of the command line."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str) -> Verified:
        code, out, errors = self.text("--json", *words)
        return Verified(code, json.loads(out) if out else {}, errors)

    def text(self, *words: str) -> tuple[int, str, str]:
        """Return exit code, standard output and standard error."""
        parser = argparse.ArgumentParser()
        verify_command.options(parser)
        self._capsys.readouterr()
        code = verify_command.run(parser.parse_args([*words]))
        printed = self._capsys.readouterr()
        return code, printed.out, printed.err


def add_objects(
    cluster: FakeCluster, lab: int, *kinds: str, name: str = "", age_s: float = 3600, **metadata: Any
) -> None:
    """Put a lab's objects into the cluster as a create leaves them, or only those kinds."""
    name = name or pod_name(lab)
    created = (datetime.now(timezone.utc) - timedelta(seconds=age_s)).isoformat()
    for kind in kinds or ("Pod", "Service", "NetworkPolicy"):
        own: dict[str, Any] = {"name": name, "labels": lab_labels(lab, 7, 42), "creationTimestamp": created}
        if kind != "Pod":
            own["ownerReferences"] = [{"kind": "Pod", "name": name, "uid": uid_of("Pod", name)}]
        status = READY if kind == "Pod" else {}
        cluster.add(path_of(kind, name), {"kind": kind, "metadata": {**own, **metadata}, "status": status})


def running(database: Database, cluster: FakeCluster, **columns: object) -> int:
    """Return a RUNNING lab with its objects."""
    lab = database.add_lab(status="RUNNING", connection_url="http://10.0.0.1/", **columns)
    database.rows("UPDATE lab_instances SET k8s_pod_name = %s WHERE id = %s", pod_name(lab), lab)
    add_objects(cluster, lab)
    return lab


def pod_name(lab: int) -> str:
    return f"lab-instance-{lab}-demo"


def path_of(kind: str, name: str) -> str:
    return f"{collections('labs')[kind]}/{name}"


def uid_of(kind: str, name: str) -> str:
    return f"uid-{path_of(kind, name)}"


def age(database: Database, seconds: int = 3600, *, created: Collection[int] | None = None) -> None:
    """Make everything in the database so many seconds older.

    Of the labs in `created` alone, if it is given, also the time at which they were created: a lab with
    another one is another lab to its own objects.
    """
    for column in ("updated_at", "stop_requested_at", "stopped_at", "failed_at", "started_at"):
        statement = f"UPDATE lab_instances SET {column} = {column} - make_interval(secs => %s)"
        database.rows(statement, seconds)
    of_labs = "" if created is None else "WHERE id = ANY(%s)"
    statement = f"UPDATE lab_instances SET created_at = created_at - make_interval(secs => %s) {of_labs}"
    database.rows(statement, seconds, *([] if created is None else [[*created]]))
    for column in ("claimed_at", "finished_at"):
        statement = f"UPDATE task_ledger SET {column} = {column} - make_interval(secs => %s)"
        database.rows(statement, seconds)


def used_up_to(database: Database, lab: int) -> None:
    """Let all ids up to this one be those of labs that were there once; none is given twice."""
    sequence = "CAST(pg_get_serial_sequence('lab_instances', 'id') AS regclass)"
    database.rows(f"SELECT setval({sequence}, greatest(pg_sequence_last_value({sequence}), %s))", lab)


def quick(*words: str) -> tuple[str, ...]:
    return ("--settle", "0", *words)


@pytest.fixture
def api_server(cluster: FakeCluster) -> Iterator[ScriptedServer]:
    with ScriptedServer(cluster) as server:
        yield server


@pytest.fixture
def api_url() -> str:
    return os.environ["RABBITMQ_API_URL"]


@pytest.fixture
def verify(
    broker: Broker,
    database: Database,
    api_server: ScriptedServer,
    api_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Verify:
    monkeypatch.setattr(jobs.cluster.client, "BLIP_S", 0.2)
    monkeypatch.setattr(jobs.database.connection, "BLIP_S", 0.2)
    monkeypatch.setattr(jobs.verify.snapshot, "QUIET_HEARTBEATS", 0)
    monkeypatch.setattr(jobs.verify.snapshot, "HELD_SETTLE_S", 0.0)
    access = ClusterAccess(api_server.url, ca_pem="")
    monkeypatch.setattr(console.access, "open_cluster", lambda _environ: Cluster(access))
    monkeypatch.setenv("AMQP_URL", broker.url)
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.delenv("RABBITMQ_API_URL")
    return Verify(capsys)


@pytest.fixture
def between_looks(monkeypatch: pytest.MonkeyPatch) -> Actions:
    """What happens between the looks, instead of a pause."""
    actions: Actions = []
    monkeypatch.setattr(Stop, "pause", lambda _self, _seconds: [act() for act in actions])
    return actions


@pytest.fixture
def before_repairs(monkeypatch: pytest.MonkeyPatch) -> Actions:
    """What happens between the last look and the first repair."""
    actions: Actions = []
    run = Repairs.run

    def late(self: Repairs, differences: Iterable[Difference]) -> Iterator[tuple[Difference, bool, str]]:
        for act in actions:
            act()
        return run(self, differences)

    monkeypatch.setattr(Repairs, "run", late)
    return actions
