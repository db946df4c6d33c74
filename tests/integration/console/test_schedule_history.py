"""The history of a schedule, of which some containers were killed; the Jobs are scripted."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest

from console.schedules.cron_jobs import CronJobs
from console.schedules.history import Run, as_table, runs_of
from dispatcher.failure_contract import CONTAINER_DEADLINE_S
from dispatcher.tasks import HEALTH_CHECK_PODS
from jobs.cluster.access import ClusterAccess
from jobs.cluster.client import Cluster
from jobs.database.lab_store import LabStore
from jobs.database.ledger import Ending
from tests.support.database.postgres import Database
from tests.support.factories import make_record
from tests.support.http_server import Answer, Request, ScriptedServer

NAME = "health-check-pods"
CRON_JOB = {"metadata": {"name": NAME, "labels": {"app.kubernetes.io/component": "health"}}}
DEADLINE = {
    "type": "Failed",
    "status": "True",
    "reason": "DeadlineExceeded",
    "message": "Job was active longer than specified deadline",
    "lastTransitionTime": "2026-01-02T03:04:05Z",
}
JOB = f"{NAME}-100"
WITHOUT_RESULT = "its container ended without a result"
LONG_AGO_S = CONTAINER_DEADLINE_S + 60

Begin = Callable[..., str]


@pytest.fixture
def begin(labs: LabStore) -> Begin:
    """Begin a run so many seconds ago, and end it with an outcome if there is one."""

    def begin(age_s: float, *, ends: str | None = None, **changes: Any) -> str:
        of_schedule = {"queue": "", "job_name": JOB, "task_name": HEALTH_CHECK_PODS, **changes}
        record = make_record(claimed_monotonic=time.monotonic() - age_s, **of_schedule)
        labs.begin(record)
        if ends:
            labs.record(record, Ending(ends))
        return record.task_id

    return begin


def seen(database: Database, *conditions: list[dict[str, str]]) -> list[Run]:
    """Return the history where these Jobs, by their conditions, are still there."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    jobs = [
        {
            "metadata": {"name": f"{NAME}-{100 + number}", "creationTimestamp": now},
            "status": {"startTime": now, "conditions": found},
        }
        for number, found in enumerate(conditions)
    ]

    def answer(request: Request) -> Answer:
        if "/jobs" in request.path:
            return Answer(content={"items": jobs, "metadata": {"resourceVersion": "1"}})
        return Answer(content=CRON_JOB)

    with ScriptedServer(answer) as server:
        cron_jobs = CronJobs(Cluster(ClusterAccess(server.url, ca_pem="")), "platform")
        return runs_of(cron_jobs, NAME, limit=20, environ={"DATABASE_URL": database.url})


def test_a_run_whose_job_was_ended_is_lost_and_says_what_its_job_says(
    database: Database, begin: Begin
) -> None:
    begin(30)
    (run,) = seen(database, [DEADLINE])
    assert (run.outcome, run.duration_s) == ("lost", None)
    assert run.error == "DeadlineExceeded: Job was active longer than specified deadline"
    assert "lost" in as_table([run])


def test_a_run_goes_on_as_long_as_its_job_does(database: Database, begin: Begin) -> None:
    begin(LONG_AGO_S)
    (run,) = seen(database, [])
    assert (run.outcome, run.error) == ("started", "")
    assert run.duration_s is not None
    assert run.duration_s >= LONG_AGO_S


@pytest.mark.parametrize("queue", ["", "celery.cleanup"], ids=["a job", "a message"])
@pytest.mark.parametrize(
    ("age_s", "outcome", "error"), [(LONG_AGO_S, "lost", WITHOUT_RESULT), (30, "started", "")]
)
def test_a_run_without_a_job_is_lost_when_no_container_may_be_at_it(
    database: Database, begin: Begin, queue: str, age_s: float, outcome: str, error: str
) -> None:
    begin(age_s, queue=queue)
    (run,) = seen(database)
    assert (run.outcome, run.error) == (outcome, error)


def test_a_run_whose_message_was_delivered_again_and_done_is_lost(database: Database, begin: Begin) -> None:
    task_id = begin(30, queue="celery.cleanup")
    begin(10, queue="celery.cleanup", task_id=task_id, ends="succeeded")
    assert [run.outcome for run in seen(database)] == ["succeeded", "lost"]


def test_a_run_that_ended_keeps_its_outcome_whatever_its_job_says(database: Database, begin: Begin) -> None:
    begin(LONG_AGO_S, ends="succeeded")
    (run,) = seen(database, [DEADLINE])
    assert (run.outcome, run.error) == ("succeeded", "")
    assert run.duration_s is not None
