"""`autolabs schedule`: what is stored and what is in the cluster, changed by one and by several at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cronjobs.timetable import SHIPPED, parse_schedules
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.schedules import HANGS_S, Operator

pytestmark = pytest.mark.timeout(2 * HANGS_S)
#: Seconds that kubectl may wait, within those that the tests give it.
KUBECTL_S = HANGS_S // 2

YEARLY = 'one: {task: outbox, schedule: "@yearly"}\ntwo: {task: cleanup, schedule: "@yearly"}\n'


@pytest.fixture(scope="module")
def module_operator(own_platform: OwnPlatform) -> Operator:
    return Operator(own_platform)


@pytest.fixture
def operator(module_operator: Operator) -> Iterator[Operator]:
    """An operator whose cluster has what YEARLY says, and nothing else."""
    module_operator.store(YEARLY)
    module_operator.do("apply")
    yield module_operator
    module_operator.platform.namespace.kubectl("delete", "cronjobs", "--all")


def test_the_shipped_schedules_are_accepted_and_applied_once(operator: Operator) -> None:
    names = list(parse_schedules(SHIPPED.read_bytes()))
    out = operator.do("apply", "--file", str(SHIPPED))
    assert out.splitlines() == [*(f"{name}: created" for name in names), "one: deleted", "two: deleted"]
    assert operator.do("apply").splitlines() == [f"{name}: unchanged" for name in names]
    assert {name: row["state"] for name, row in operator.rows().items()} == dict.fromkeys(names, "as stored")
    assert operator.stored() == SHIPPED.read_text()


def test_a_dry_run_changes_nothing(operator: Operator, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text('two: {task: cleanup, schedule: "@daily"}\nthree: {task: sync, schedule: "@daily"}\n')
    out = operator.do("apply", "--file", str(file), "--dry-run").splitlines()
    assert out == [
        "two: would be changed",
        "  spec.schedule: @yearly -> @daily",
        "three: would be created",
        "one: would be deleted",
    ]
    assert operator.stored() == YEARLY
    assert operator.spec("two")["schedule"] == "@yearly"
    assert set(operator.cron_jobs.live()) == {"one", "two"}


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (("set", "one", "--schedule", "* * *"), 2, "one.schedule: '* * *' has 3 fields"),
        (("set", "one", "--time-zone", "Mars/Olympus"), 2, "one.time_zone: 'Mars/Olympus' is not in the tz"),
        (
            ("set", "one", "--schedule", "@daily", "--image", "jobs"),
            2,
            "'jobs' needs a tag other than latest",
        ),
        (("set", "four", "--schedule", "@daily"), 1, "no schedule 'four'; there are cleanup-timeout-labs,"),
        (("apply", "--file", "/nonexistent"), 1, "cannot read /nonexistent: No such file"),
        (("suspend",), 2, "name a schedule, or give --all"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_not_acceptable_is_neither_stored_nor_applied(
    operator: Operator, words: tuple[str, ...], code: int, complaint: str
) -> None:
    done = operator.run(*words)
    assert done.code == code, done
    assert complaint in done.err
    assert operator.stored() == YEARLY
    assert {row["state"] for row in operator.rows().values()} == {"as stored"}


def test_what_the_api_server_refuses_changes_nothing(operator: Operator, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text('one: {task: outbox, schedule: "@daily"}\nthree: {task: sync, schedule: "@daily"}\n')
    kubectl = operator.platform.namespace.kubectl
    kubectl("create", "quota", "two-only", "--hard=count/cronjobs.batch=2")
    try:
        # Its controller counts what is there; until then it refuses everything.
        counted = "--for=jsonpath={.status.used.count/cronjobs\\.batch}=2"
        kubectl("wait", "quota/two-only", counted, f"--timeout={KUBECTL_S}s")
        done = operator.run("apply", "--file", str(file))
    finally:
        kubectl("delete", "quota", "two-only")
    assert done.code == 1, done
    assert "the API server refuses three: " in done.err
    assert "exceeded quota" in done.err
    assert operator.stored() == YEARLY
    assert operator.spec("one")["schedule"] == "@yearly"
    assert set(operator.cron_jobs.live()) == {"one", "two"}


def test_a_suspension_by_hand_is_kept_until_somebody_resumes(operator: Operator) -> None:
    operator.platform.namespace.kubectl("patch", "cronjob", "one", "--patch", '{"spec": {"suspend": true}}')
    assert operator.do("apply").splitlines() == ["one: unchanged", "two: unchanged"]
    assert operator.rows()["one"]["state"] == "suspended by hand"
    operator.do("resume", "one")
    assert operator.spec("one")["suspend"] is False
    assert operator.stored() == YEARLY


def test_a_suspension_by_hand_yields_to_what_the_entry_says(operator: Operator) -> None:
    operator.platform.namespace.kubectl("patch", "cronjob", "one", "--patch", '{"spec": {"suspend": true}}')
    operator.store(YEARLY.replace("outbox,", "outbox, suspend: false,"))
    assert "  spec.suspend: True -> False" in operator.do("apply").splitlines()


def test_a_suspension_is_stored_and_survives_an_apply(operator: Operator) -> None:
    operator.do("suspend", "--all")
    assert {name: one.suspend for name, one in parse_schedules(operator.stored().encode()).items()} == {
        "one": True,
        "two": True,
    }
    operator.platform.namespace.kubectl("patch", "cronjob", "one", "--patch", '{"spec": {"suspend": false}}')
    assert operator.rows()["one"]["state"] == "differs"
    operator.do("apply", "--image", "registry.gitlab.com/autolabs/jobs:next")
    assert all(row["suspended"] for row in operator.rows().values())
    operator.do("resume", "--all")
    assert operator.stored() == YEARLY
    assert not any(row["suspended"] for row in operator.rows().values())


def test_operators_who_change_at_once_and_are_processes_lose_nothing(operator: Operator) -> None:
    wanted = {"one": "1 1 * * *", "two": "2 2 * * *"}
    running = [operator.start("set", name, "--schedule", time) for name, time in wanted.items()]
    running += [operator.start("set", "one", "--time-zone", "Europe/Moscow"), operator.start("apply")]
    for command in running:
        done = operator.end(command)
        assert done.code == 0, done
    stored = parse_schedules(operator.stored().encode())
    assert {name: one.schedule for name, one in stored.items()} == wanted
    assert stored["one"].time_zone == "Europe/Moscow"
    assert {row["state"] for row in operator.rows().values()} == {"as stored"}


def test_what_is_somebody_elses_is_left_alone(operator: Operator) -> None:
    foreign = {**operator.cron_jobs.live()["one"], "apiVersion": "batch/v1", "kind": "CronJob"}
    foreign["metadata"] = {"name": "theirs", "labels": {"app.kubernetes.io/managed-by": "somebody"}}
    operator.platform.namespace.kubectl("create", "--filename=-", stdin=foreign)
    operator.do("apply")
    assert "theirs" in operator.cron_jobs.live()
    assert "theirs" not in operator.rows()
    operator.store(YEARLY + 'theirs: {task: outbox, schedule: "@daily"}\n')
    done = operator.run("apply")
    assert done.code == 1
    assert "a CronJob theirs is there already and is not ours" in done.err
    assert operator.spec("theirs")["schedule"] == "@yearly"


def test_a_cron_job_of_before_there_were_schedules_is_made_anew(operator: Operator) -> None:
    earlier = {**operator.cron_jobs.live()["one"], "apiVersion": "batch/v1", "kind": "CronJob"}
    earlier["metadata"] = {
        "name": "three",
        "labels": {"app.kubernetes.io/part-of": "autolabs", "app.kubernetes.io/managed-by": "kustomize"},
    }
    pod = earlier["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    pod["containers"][0]["name"] = "earlier"
    pod["volumes"] = [{"name": "secrets", "secret": {"secretName": "autolabs-jobs"}}]
    operator.platform.namespace.kubectl(
        *("apply", "--server-side", "--field-manager=somebody", "--filename=-"), stdin=earlier
    )
    operator.store(YEARLY + 'three: {task: outbox, schedule: "@daily"}\n')
    assert "three: replaced" in operator.do("apply")
    (container,) = operator.spec("three")["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["name"] == "outbox"
    assert operator.do("apply").splitlines() == [f"{name}: unchanged" for name in ("one", "two", "three")]


def test_without_a_stored_document_the_shipped_one_is_used_and_new_schedules_are_named(
    operator: Operator,
) -> None:
    done = operator.run("list")
    assert "of this release not stored: cleanup-timeout-labs" in done.err
    operator.do("set", "outbox")
    assert operator.rows()["outbox"]["schedule"] == "* * * * *"
    assert operator.stored().startswith(YEARLY)


def test_nothing_is_known_of_a_run_that_never_was(operator: Operator) -> None:
    assert operator.do("history", "two") == "no run is known\n"
    assert json.loads(operator.do("history", "one", "--json")) == []
    assert operator.run("history", "nothing").code == 1
