"""Schedules in force: ticks of real CronJobs, and runs by hand with their log."""

from __future__ import annotations

import signal

import pytest

from cronjobs.overview import job_outcome
from tests.support.own_platform import OwnPlatform
from tests.support.schedules import Operator
from tests.support.waiting import eventually

# Pods wait for each other on a small machine.
pytestmark = pytest.mark.timeout(300)
#: Seconds until a CronJob's Job is there: a minute, and the controller's own delay.
TICK_S = 75

DOCUMENT = """\
# What this platform runs.
waking: {task: outbox, schedule: "0 0 1 1 *", options: {dry_run: true}}  # once a year
asleep: {task: outbox, schedule: "* * * * *", options: {dry_run: true}, starting_deadline_s: 10}
checked: {task: health, schedule: "@yearly", env: {LAB_NAMESPACE: the-namespace}}
broken: {task: health, schedule: "@yearly", env: {KUBECONFIG_OBJECT: nope.yaml}}
"""


@pytest.fixture(scope="module")
def operator(own_platform: OwnPlatform) -> Operator:
    operator = Operator(own_platform)
    operator.store(DOCUMENT.replace("the-namespace", own_platform.namespace.name))
    operator.do("apply")
    return operator


def test_a_change_is_in_force_at_the_next_tick(operator: Operator) -> None:
    operator.do("suspend", "asleep")
    assert "spec.schedule: 0 0 1 1 * -> * * * * *" in operator.do("set", "waking", "--schedule", "* * * * *")
    eventually(lambda: operator.jobs("waking"), TICK_S, what="the first tick of a schedule that was yearly")
    before = operator.jobs("asleep")
    assert len(before) <= 1, "none but one of a tick before the suspension"
    assert operator.rows()["asleep"]["suspended"] is True

    operator.do("suspend", "waking")
    operator.do("resume", "asleep")
    ran = operator.jobs("waking")
    eventually(lambda: operator.jobs("asleep") != before, TICK_S, what="the tick after the resumption")
    assert operator.jobs("waking") == ran, "no tick while suspended"
    assert "# What this platform runs." in operator.stored()


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


def test_a_second_run_is_refused_and_an_interrupted_one_goes_on(operator: Operator) -> None:
    operator.do("suspend", "waking", "asleep")
    command = operator.start("run-now", "checked")
    assert command.stderr is not None
    assert "is made" in command.stderr.readline()
    # Both while the Job, whose pod takes seconds, is not done.
    command.send_signal(signal.SIGINT)
    second = operator.run("run-now", "checked")
    assert (second.code, second.out) == (1, "")
    assert "runs already, and concurrency of checked is Forbid" in second.err
    _, said = command.communicate(timeout=20)
    assert command.returncode == 130
    assert "goes on; its log: kubectl logs" in said
    latest = operator.jobs("checked", by_hand=True)[0]

    def ended() -> bool:
        jobs = {job["metadata"]["name"]: job for job in operator.cron_jobs.jobs("checked")}
        return job_outcome(jobs[latest])[0] == "succeeded"

    eventually(ended, 60, what="the run that was left alone succeeds")


def test_an_option_that_the_task_does_not_have_makes_no_job(operator: Operator) -> None:
    before = operator.jobs("waking", by_hand=True)
    done = operator.run("run-now", "waking", "--force")
    assert (done.code, operator.jobs("waking", by_hand=True)) == (1, before)
    assert "waking takes no --force; allowed are --dry-run" in done.err


def test_nobody_runs_what_is_not_there(operator: Operator) -> None:
    done = operator.run("run-now", "nothing")
    assert done.code == 1
    assert "no CronJob nothing of ours; there are asleep, broken, checked, waking" in done.err
