"""Fail RUNNING labs whose Pod is gone, over, or of no use (celery_workers.health_check_pods).

Nothing is done on the first look alone. What it suspects is looked at once more, one by one, right before
the lab is made FAILED, and only a row that is still as it was read is changed: two checks at once, or one
beside a delete, fail a lab once or not at all. Some labs may be started again elsewhere
(jobs.database.restarts).
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from datetime import timedelta
from typing import Any

from dispatcher import tasks
from dispatcher.failure_contract import EventType
from dispatcher.message.envelope import new_task_id
from jobs.checks.run import hour_of, relay, tell_refused
from jobs.checks.running_labs import RunningLabs, Suspect, look_at_running_labs, refusal
from jobs.cluster.client import ApiError, ApiUnavailable, Manifest, api_failure
from jobs.cluster.pod_facts import Seen, bounded, pod_facts
from jobs.cluster.pod_fields import State
from jobs.cluster.pod_status import running_status
from jobs.config.naming import belongs_to
from jobs.database.ledger import TaskRunRecord
from jobs.database.notifications import add_out_of_memory
from jobs.database.snapshot_rows import LabRow, database_now
from jobs.errors import JobError, PermanentError
from jobs.failures import Failure
from jobs.handlers.context import TaskContext
from jobs.handlers.give_up import LostLabs
from jobs.verify.safety_limits import Refusal

logger = logging.getLogger(__name__)

#: Seconds that one check goes on to fail labs; the next one, a minute later, finds the others.
FAIL_S = 30.0
#: Labs whose objects are deleted together.
TOGETHER = 25
#: Labs of which events and log are read, and of which this container tells people.
CLOSER_LOOKS = 10
#: Most odd rows that a result names.
MAX_NAMED = 20
#: Seconds after which a program that was ended for want of memory, and runs again, is no news.
_KILLED_LATELY_S = 3600.0
_KILLED = (
    "A program in this lab was ended because the lab needed more memory than it may use. The lab goes on, but"
    " what that program held is lost. Please give the lab more memory or correct the image."
)


def run(context: TaskContext, payload: tasks.HealthCheckPods) -> dict[str, Any]:
    """Look at all RUNNING labs and fail those that cannot be used. Raises JobError, PublishError."""
    try:
        return _HealthCheck(context).run(dry_run=payload.dry_run, force=payload.force)
    except (ApiError, ApiUnavailable) as exc:
        raise api_failure(exc) from exc


class _HealthCheck:
    def __init__(self, context: TaskContext) -> None:
        self._context = context
        self._settings = context.configs.life_settings()
        self._as_of = database_now(context.labs)
        self._began = time.monotonic()
        #: Connected here: evidence is gathered by another thread.
        self._cluster = context.cluster
        self._causes: Counter[str] = Counter()
        self._restarted = self._left_alone = self._closer_looks = 0
        self._refused: PermanentError | None = None

    def run(self, *, dry_run: bool, force: bool) -> dict[str, Any]:
        context, settings = self._context, self._settings
        namespace = context.settings.namespace
        look = look_at_running_labs(context.labs, self._cluster, namespace, settings, as_of=self._as_of)
        looked_s = round(time.monotonic() - self._began, 3)
        refused = refusal(look, settings)
        for row in look.strange:
            self._leave(row, "a Pod of its id is labelled as another lab's or student's")
        if dry_run:
            return self._result(look, looked_s, would_fail=self._say(look, None if force else refused))
        if refused and not force:
            error = refused.error()
            tell_refused(context, refused, EventType.HEALTH_REFUSED, error.sentence, at=self._as_of)
            raise error
        try:
            put_off = self._fail_all(look.suspects)
            self._tell_of_killed(look)
        finally:
            if self._restarted:
                relay(context)
        if self._refused:
            raise self._refused
        return self._result(look, looked_s, failed=self._causes.total(), put_off=put_off)

    def _say(self, look: RunningLabs, refused: Refusal | None) -> int:
        for one in look.suspects:
            error = self._error(one)
            extra = {
                "action": "would_fail",
                "lab_instance_id": one.row.id,
                "cause": error.failure.cause,
                "evidence": error.evidence,
            }
            logger.info("lab %d would fail: %s", one.row.id, error.sentence, extra=extra)
            self._causes[error.failure.cause] += 1
        if refused:
            logger.warning("it would be refused: %s", refused, extra={"action": "would_refuse"})
        return len(look.suspects)

    def _fail_all(self, suspects: list[Suspect]) -> int:
        """Fail what is still lost, and return how many are left for the next run."""
        restarts = dict.fromkeys(self._settings.restart_causes, self._settings.max_restarts)
        context = self._context
        deadline = time.monotonic() + FAIL_S
        for at in range(0, len(suspects), TOGETHER):
            if time.monotonic() > deadline:
                return len(suspects) - at
            with LostLabs(
                labs=context.labs, objects=context.lab_objects, as_of=self._as_of, restarts=restarts
            ) as lost:
                for one in suspects[at : at + TOGETHER]:
                    self._fail(lost, one.row)
        return 0

    def _fail(self, lost: LostLabs, row: LabRow) -> None:
        """Make a lab FAILED if its Pod is still lost, and its row as it was read."""
        pod = self._context.lab_objects.find_pod(row.k8s_pod_name or "")
        if pod is not None and not belongs_to(pod, row.whose):
            return self._leave(row, "its Pod is there without its labels")
        status = running_status(pod, self._cluster.answered_at, self._settings) if pod else None
        if status and status.state is not State.LOST:
            return self._leave(row, f"its Pod is {status.state.value} by now")
        error = self._error(Suspect(row, status))
        record = self._record(row, self._look_closer(row, pod, error))
        try:
            changed = lost.fail(record, error, row)
        except PermanentError as exc:
            # It may be this row alone, which must not keep the others.
            self._refused = exc
            return self._leave(row, f"the database refuses the change: {exc.evidence}")
        if not changed:
            return self._leave(row, "its row has changed or is held, or a container works on it")
        self._count(row, error, record.details.get("started_again_as"))
        # Each may take seconds: of the others the sweep of the outbox tells.
        if self._closer_looks <= CLOSER_LOOKS:
            self._context.notify(record.notification_id)

    def _error(self, one: Suspect) -> JobError:
        if one.status:
            return one.status.error()
        return Failure.POD_GONE.error(evidence=f"Pod {one.row.k8s_pod_name} is not there")

    def _look_closer(self, row: LabRow, pod: Manifest | None, error: JobError) -> Seen:
        self._closer_looks += 1
        # A node that is away does not give a log, and takes its time not to.
        if self._closer_looks > CLOSER_LOOKS or error.failure is Failure.NODE_AWAY:
            return bounded(pod_facts(pod)) if pod else {"note": "the lab had no Pod"}
        from jobs.cluster import evidence

        namespace = self._context.settings.namespace
        return evidence.collect(
            lambda: self._cluster,
            namespace,
            row.id,
            pod_name=row.k8s_pod_name,
            object_label=row.object_label,
        ).seen

    def _count(self, row: LabRow, error: JobError, started_again_as: int | None) -> None:
        self._causes[error.failure.cause] += 1
        self._restarted += started_again_as is not None
        extra = {
            "action": "lab_lost",
            "lab_instance_id": row.id,
            "cause": error.failure.cause,
            "evidence": error.evidence,
            "started_again_as": started_again_as,
        }
        logger.warning("lab %d is FAILED: %s", row.id, error.sentence, extra=extra)

    def _leave(self, row: LabRow, why: str) -> None:
        self._left_alone += 1
        extra = {"action": "left_alone", "lab_instance_id": row.id}
        logger.info("lab %d is left alone: %s", row.id, why, extra=extra)

    def _tell_of_killed(self, look: RunningLabs) -> None:
        """Tell of programs that were ended for want of memory in labs that are Ready again."""
        since = self._cluster.answered_at - timedelta(seconds=_KILLED_LATELY_S)
        killed = [(row.id, killed_at) for row, killed_at in look.killed if killed_at > since]
        if not killed:
            return
        by_hour = [(lab, hour_of(killed_at)) for lab, killed_at in killed]
        context = self._context
        for lab in add_out_of_memory(context.labs, by_hour, message=_KILLED, task_id=context.record.task_id):
            extra = {"action": "lab_out_of_memory", "lab_instance_id": lab}
            logger.warning("lab %d is Ready after it ran out of memory", lab, extra=extra)

    def _record(self, row: LabRow, seen: Seen) -> TaskRunRecord:
        ours = self._context.record
        return TaskRunRecord(
            task_id=new_task_id(),
            task_name=ours.task_name,
            queue=ours.queue,
            job_name=ours.job_name,
            pod_name=ours.pod_name,
            lab_instance_id=row.id,
            details={"found_by": ours.task_id, "seen": seen},
        )

    def _result(self, look: RunningLabs, looked_s: float, **numbers: int) -> dict[str, Any]:
        return {
            "looked_at": look.running,
            **{state.value: look.states[state] for state in (State.READY, State.UNREADY, State.GOING)},
            "ran_out_of_memory": len(look.killed),
            **numbers,
            "causes": dict(self._causes),
            "restarted": self._restarted,
            "left_alone": self._left_alone + look.left_alone,
            "looked_s": looked_s,
            **({"odd_rows": look.odd_rows[:MAX_NAMED]} if look.odd_rows else {}),
        }
