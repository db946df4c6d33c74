"""`autolabs verify` as a command: options, settings, servers that are away, exit codes."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from dispatcher.interrupts import Stop
from jobs.database.lab_store import LabStore
from jobs.database.snapshot_rows import known_delays
from jobs.verify.queue_walk import walk_lock
from tests.support.cluster.fake_cluster import FakeCluster
from tests.support.database.postgres import Database
from tests.support.http_server import ScriptedServer
from tests.support.labs.verifying import Verify, add_objects, age, path_of, pod_name, quick, running


def test_the_broker_can_be_left_out(
    verify: Verify, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.add_lab()
    age(database)
    monkeypatch.delenv("AMQP_URL")
    found = verify("--no-queues")
    assert found.code == 0
    assert found.report["information"] == ["messages were not looked at (--no-queues)"]


@pytest.mark.parametrize(
    ("variable", "value", "server"),
    [
        ("DATABASE_URL", "postgresql://u:p@127.0.0.1:1/x", "the database: "),
        ("AMQP_URL", "amqp://u:p@127.0.0.1:1/", "the broker: "),
        ("RABBITMQ_API_URL", "http://u:p@127.0.0.1:1", "the broker's management API: "),
    ],
)
def test_a_server_that_is_away_is_named(
    verify: Verify, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, server: str
) -> None:
    monkeypatch.setenv(variable, value)
    code, out, errors = verify.text(*quick())
    assert (code, out) == (3, "")
    assert f"autolabs: could not look at {server}" in errors
    assert "tried again" not in errors  # that is for students
    assert "u:p" not in errors


def test_a_cluster_that_is_away_is_named(verify: Verify, api_server: ScriptedServer) -> None:
    api_server.__exit__(None, None, None)
    code, _, errors = verify.text(*quick())
    assert code == 3
    assert "could not look at the cluster: GET " in errors


def test_somebody_else_who_looks_is_waited_for(
    verify: Verify, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = LabStore(database.url, application_name="test-other")
    with walk_lock(other, Stop()):
        monkeypatch.setattr("jobs.verify.queue_walk.PATIENCE_S", 0.6)
        monkeypatch.setattr("console.verify.command.PROGRESS_S", 0.0)
        code, _, errors = verify.text(*quick())
        assert code == 3
        assert "... another verify looks at the queues, waiting\n" in errors
        assert "could not look at the queues: somebody else has looked at them" in errors
    assert verify(*quick()).code == 0
    other.close()


def test_wrong_settings_and_options_are_named(verify: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "mysql://x")
    monkeypatch.delenv("AMQP_URL")
    code, _, errors = verify.text()
    assert code == 2
    assert "DATABASE_URL: must look like" in errors
    assert "AMQP_URL: not set" in errors
    with pytest.raises(SystemExit, match="2"):
        verify.text("--settle", "-1")


def test_long_work_says_where_it_is(
    verify: Verify, database: Database, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("console.verify.command.PROGRESS_S", 0.0)
    add_objects(cluster, database.add_lab())
    _, out, errors = verify.text(*quick())
    assert "... 3 objects\n... 1 row\n" in errors
    assert "..." not in out


@pytest.mark.parametrize("option", ["--force", "--dry-run"])
def test_an_option_of_repairs_alone_is_told_to_do_nothing(verify: Verify, option: str) -> None:
    code, _, errors = verify.text(*quick(option))
    assert (code, errors) == (0, f"autolabs: {option} changes nothing without --repair\n")


def test_only_tasks_that_surely_wait_are_known_delays(verify: Verify, database: Database) -> None:
    lab = database.add_lab(status="FAILED", failed_at=datetime.now(timezone.utc))
    add = (
        "INSERT INTO task_ledger (task_id, task_name, lab_instance_id, attempt, redelivered, queue,"
        " claimed_at, finished_at, outcome, details) VALUES (gen_random_uuid(), '', %s, 1, false, '', now(),"
        " now() - make_interval(secs => %s), %s, CAST(%s AS jsonb))"
    )
    for finished_ago_s, outcome, details in (
        (10, "retried", '{"retry_delay_s": 60}'),
        (10, "retried", "{}"),
        (45, "retried", "{}"),
        (10, "failed", '{"objects_kept_s": 900}'),
        (55, "retried", '{"retry_delay_s": 60}'),
        (10, "failed", "{}"),
        (1000, "failed", '{"objects_kept_s": 900}'),
    ):
        database.rows(add, lab, finished_ago_s, outcome, details)
    labs = LabStore(database.url, application_name="test-delays")
    # What takes kept objects down may never have been published: the row is committed before that.
    assert known_delays(labs) == 2
    labs.close()


def test_some_labs_alone_are_told_of_and_repaired(
    verify: Verify, database: Database, cluster: FakeCluster
) -> None:
    first, second, third = labs = [running(database, cluster) for _ in range(3)]
    running(database, cluster)
    for lab in labs:
        cluster.objects.pop(path_of("Pod", pod_name(lab)))
    age(database)
    assert verify(*quick(str(first))).said() == [(first, "pod_gone")]
    found = verify(*quick("--repair", str(first), str(third), "999"))
    assert (found.code, found.said()) == (0, [(first, "pod_gone"), (third, "pod_gone")])
    told = f"only labs {first}, {third}, 999 are reported; over, with nothing left, or unknown: 999"
    assert told in found.report["information"]
    assert [database.lab(lab)["status"] for lab in labs] == ["FAILED", "RUNNING", "FAILED"]
    assert verify(*quick()).said() == [(second, "pod_gone")]


def test_what_is_no_lab_is_not_taken_for_one(verify: Verify, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        verify("0")
    assert "'0' is not allowed; it must be an integer from 1" in capsys.readouterr().err
