"""Schedules in force: ticks of real CronJobs, and runs by hand with their log."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from console.schedules.cron_jobs import job_outcome
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.schedules import HANGS_S, Operator
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(3 * HANGS_S)

DOCUMENT = """\
# What this platform runs.
waking: {task: outbox, schedule: "0 0 1 1 *", options: {dry_run: true}}  # once a year
asleep: {task: outbox, schedule: "* * * * *", options: {dry_run: true}}
resumed: {task: outbox, schedule: "* * * * *", options: {dry_run: true}, suspend: true}
checked: {task: health, schedule: "@yearly", env: {LAB_NAMESPACE: the-namespace}}
broken: {task: health, schedule: "@yearly", env: {KUBECONFIG_OBJECT: nope.yaml}}
"""


@dataclass(frozen=True)
class Changed:
    """What an operator changed, and when that was done."""

    operator: Operator
    #: What `set` said.
    said: str
    #: The minute since 1970 after which the changes have to be in force.
    minute: int

    def ticks(self, name: str) -> set[int]:
        """Return the minutes for which a schedule ran since then; they are in the names of its Jobs."""
        minutes = {int(job.rpartition("-")[2]) for job in self.operator.jobs(name)}
        return {minute for minute in minutes if minute > self.minute}


@pytest.fixture(scope="module")
def changed(own_platform: OwnPlatform) -> Changed:
    """Made at the beginning, so that the other tests fill the minute until the tick."""
    operator = Operator(own_platform)
    operator.store(DOCUMENT.replace("the-namespace", own_platform.namespace.name))
    operator.do("apply")
    assert {name: row["suspended"] for name, row in operator.rows().items()} == {
        **dict.fromkeys(("waking", "asleep", "checked", "broken"), False),
        "resumed": True,
    }
    operator.do("suspend", "asleep")
    operator.do("resume", "resumed")
    said = operator.do("set", "waking", "--schedule", "* * * * *")
    return Changed(operator, said, int(time.time() // 60))


@pytest.fixture
def operator(changed: Changed) -> Iterator[Operator]:
    yield changed.operator
    changed.operator.clear()


@pytest.fixture
def no_room(own_platform: OwnPlatform) -> Iterator[None]:
    """Jobs are made, and go on for as long as nobody gives their pods room."""
    own_platform.namespace.kubectl("create", "quota", "no-room", "--hard=pods=0")
    yield
    own_platform.namespace.kubectl("delete", "quota", "no-room", "--ignore-not-found")


def test_a_run_by_hand_shows_its_log_and_its_end(operator: Operator) -> None:
    done = operator.run("run-now", "checked", "--dry-run")
    assert done.code == 0, done
    assert '"message": "health_check_pods is done"' in done.out
    assert '"dry_run": true' in done.out
    (name,) = operator.jobs("checked", by_hand=True)
    assert f"kubectl logs --follow job/{name}" in done.err
    job = operator.cron_jobs.cluster.get(f"{operator.cron_jobs.jobs_path}/{name}")
    assert job is not None
    assert job["metadata"]["annotations"]["cronjob.kubernetes.io/instantiate"] == "manual"
    (owner,) = job["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("CronJob", "checked")


def test_a_run_that_fails_ends_with_1_and_is_in_the_history(operator: Operator) -> None:
    done = operator.run("run-now", "broken")
    assert done.code == 1, done
    assert "nope.yaml is missing" in done.out
    assert "failed: BackoffLimitExceeded" in done.err
    (name,) = operator.jobs("broken", by_hand=True)
    history = operator.do("history", "broken")
    assert "checked-" not in history, "a run of another schedule of the same task"
    (line,) = [line for line in history.splitlines() if name in line]
    assert " failed " in line
    assert " hand " in line
    assert operator.rows()["broken"]["last_outcome"] == "failed"


@pytest.mark.usefixtures("no_room")
def test_a_second_run_is_refused_and_an_interrupted_one_goes_on(operator: Operator) -> None:
    command = operator.start("run-now", "checked")
    assert command.stderr is not None
    assert "is made" in command.stderr.readline()
    command.send_signal(signal.SIGINT)
    second = operator.run("run-now", "checked")
    assert (second.code, second.out) == (1, "")
    assert "runs already, and concurrency of checked is Forbid" in second.err
    (left_alone,) = operator.jobs("checked", by_hand=True)
    operator.do("run-now", "checked", "--dry-run", "--no-follow")
    first = operator.end(command)
    assert first.code == 130
    assert "goes on; its log: kubectl logs" in first.err
    operator.platform.namespace.kubectl("delete", "quota", "no-room")

    def ended() -> bool:
        jobs = {job["metadata"]["name"]: job for job in operator.cron_jobs.jobs("checked")}
        return job_outcome(jobs[left_alone])[0] == "succeeded"

    eventually(ended, HANGS_S, what="the run that was left alone succeeds")


def test_an_option_that_the_task_does_not_have_makes_no_job(operator: Operator) -> None:
    before = operator.jobs("waking", by_hand=True)
    done = operator.run("run-now", "waking", "--force")
    assert (done.code, operator.jobs("waking", by_hand=True)) == (1, before)
    assert "waking takes no --force; allowed are --dry-run" in done.err


def test_nobody_runs_what_is_not_there(operator: Operator) -> None:
    done = operator.run("run-now", "nothing")
    assert done.code == 1
    assert "no CronJob nothing of ours; there are asleep, broken, checked, resumed, waking" in done.err


def test_changes_are_in_force_at_the_next_tick(changed: Changed) -> None:
    assert "spec.schedule: 0 0 1 1 * -> * * * * *" in changed.said

    def common() -> set[int]:
        return changed.ticks("waking") & changed.ticks("resumed")

    eventually(common, HANGS_S, what="a tick of what was yearly, and of what was suspended")
    suspended = {name: row["suspended"] for name, row in changed.operator.rows().items()}
    assert (suspended["waking"], suspended["asleep"], suspended["resumed"]) == (False, True, False)
    assert changed.ticks("asleep") == set(), "no tick since its suspension"
    assert "# What this platform runs." in changed.operator.stored()
