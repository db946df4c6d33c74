"""Compare rows, objects and what is on the broker, and mend what differs (celery_workers.sync_lab_status).

It looks as `autolabs verify` does and repairs as `autolabs verify --repair`, except that it moves no message:
queues are only counted. What it may not repair is a warning in the log, and counted.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

from dispatcher import tasks
from dispatcher.failure_contract import Audience, EventType
from jobs.checks.run import relay, tell_refused
from jobs.cluster.client import ApiError, ApiUnavailable, api_failure
from jobs.database.connection import session_lock
from jobs.database.notifications import NewNotification, add_notification
from jobs.errors import JobError
from jobs.failures import Failure
from jobs.handlers.context import TaskContext
from jobs.verify.differences import Difference, Kind, Repair
from jobs.verify.lost_requests import lost_starts
from jobs.verify.repairs import Repairs, refusal
from jobs.verify.snapshot import (
    BrokerUnseen,
    Comparison,
    CouldNotLook,
    QueueReading,
    Sources,
    find_differences,
    find_lost_requests,
    quiet_s,
)

logger = logging.getLogger(__name__)

#: Lines of the log about single differences, of each kind; the ledger has every repair.
MAX_LINES = 50
#: Most odd rows that a result names.
MAX_NAMED = 20
#: Seconds for which a Pod that ended is left to the health check, which comes each minute and can say why.
HEALTH_FIRST_S = 180


def run(context: TaskContext, payload: tasks.SyncLabStatus) -> dict[str, Any]:
    """Look, mend, and return counts by kind; of two at a time the second one does nothing.

    Raises:
        JobError: a server is away, or what differs is not believed (TOO_MANY_AT_ONCE, CLOCKS_DIFFER).
    """
    with session_lock(context.labs, "autolabs.sync") as alone:
        if not alone:
            logger.warning("another sync is under way, so this one does nothing", extra={"action": "busy"})
            return {"busy": True}
        try:
            return _Sync(context, payload).run()
        except CouldNotLook as exc:
            raise _error(exc) from exc


class _Log:
    """Say in the log what differs, in at most MAX_LINES lines of each level."""

    def __init__(self) -> None:
        self._lines: Counter[int] = Counter()

    def __call__(self, level: int, one: Difference, done: str, action: str) -> None:
        self._lines[level] += 1
        if self._lines[level] > MAX_LINES:
            return
        extra = {
            "action": action,
            "difference": one.kind.value,
            "lab_instance_id": one.lab,
            "object": one.object,
            "since": one.since,
            "repair": done,
        }
        lab = "no lab" if one.lab is None else f"lab {one.lab}"
        logger.log(level, "%s, %s: %s", lab, one.object, one.seen, extra=extra)

    def end(self) -> None:
        for level, count in self._lines.items():
            if count > MAX_LINES:
                logger.log(level, "and %d more", count - MAX_LINES, extra={"action": "more_differences"})


class _Sync:
    def __init__(self, context: TaskContext, payload: tasks.SyncLabStatus) -> None:
        self._context = context
        self._payload = payload
        self._settings = context.configs.life_settings()
        self._sources = Sources(
            context.labs,
            context.cluster,
            context.settings.namespace,
            context.settings.broker,
            reading=QueueReading.COUNT,
            grace_s=self._settings.orphan_grace_s,
            url_template=_url_template(context),
        )
        self._log = _Log()
        self._found: Counter[str] = Counter()
        self._undecided = 0
        self._repaired: Counter[str] = Counter()
        self._restarted = 0

    def run(self) -> dict[str, Any]:
        comparison = self._look()
        self._found.update(one.kind.value for one in comparison.differences)
        self._undecided = comparison.undecided
        result: dict[str, Any] = {
            "rows": len(comparison.inventory.rows),
            "objects": len(comparison.inventory.objects),
            "undecided": self._undecided,
        }
        odd_rows = [row.id for row in comparison.inventory.rows.values() if row.has_odd_times]
        if odd_rows:
            result["odd_rows"] = odd_rows[:MAX_NAMED]
        share, always = self._settings.fail_max_share, self._settings.fail_always
        refused = refusal(comparison.differences, comparison.inventory, share=share, always=always)
        if self._payload.force:
            refused = None
        if self._payload.dry_run or refused:
            for one in comparison.differences:
                would = one.repair.value if one.repair else "a person has to look"
                self._log(logging.WARNING, one, would, "would_repair" if one.repair else "difference")
            self._log.end()
        if self._payload.dry_run:
            would_repair = _counts(Counter(one.kind.value for one in comparison.differences if one.repair))
            why = refused.sentence if refused else None
            return result | {"found": _counts(self._found), "would_repair": would_repair, "refused": why}
        if refused:
            error = refused.error(evidence=f"found {_counts(self._found)}")
            now = comparison.inventory.now
            tell_refused(self._context, refused, EventType.SYNC_REFUSED, error.sentence, at=now)
            raise error
        try:
            self._repair(comparison)
        finally:
            # After the look at the lost requests, to which a create is a message of which nothing is known.
            if self._restarted:
                relay(self._context)
        self._log.end()
        left = sum(self._found.values()) - sum(self._repaired.values())
        done = {"found": _counts(self._found), "repaired": _counts(self._repaired), "left": left}
        return result | {"undecided": self._undecided, **done}

    def _look(self) -> Comparison:
        try:
            return find_differences(self._sources)
        except BrokerUnseen as exc:
            # Objects and rows tell most of it.
            extra = {"action": "broker_unseen"}
            logger.warning("labs that wait are left out, could not look at %s", exc, extra=extra)
            self._sources = replace(self._sources, broker=None)
            return find_differences(self._sources)

    def _repair(self, comparison: Comparison) -> None:
        found = comparison.differences
        later = (Repair.FAIL_PENDING, Repair.PUBLISH_DELETE)
        self._apply(comparison, [one for one in found if one.repair not in later])
        self._fail_lost([one for one in found if one.repair is Repair.FAIL_PENDING])
        # Last: to the look at the lost requests our own delete is a message of which nothing is known.
        self._apply(comparison, [one for one in found if one.repair is Repair.PUBLISH_DELETE])

    def _fail_lost(self, lost: list[Difference]) -> None:
        if not lost or self._sources.broker is None:
            return
        wait_s = quiet_s(self._sources.broker)
        extra = {"action": "waits", "seconds": wait_s, "labs": len(lost)}
        logger.info("requests seem to be lost: waiting for whoever may hold them", extra=extra)
        try:
            for_sure = find_lost_requests(self._sources, lost)
        except BrokerUnseen as exc:
            return self._leave_open(lost, f"could not look at {exc}")
        sure = {one.lab for one in for_sure.differences}
        waits = {row.id for row in lost_starts(for_sure.inventory)}
        unproven = [one for one in lost if one.lab not in sure and one.lab in waits]
        self._leave_open(unproven, "messages wait that may be its own")
        came = {one.lab for one in lost} - sure - waits
        if came:
            logger.info("requests came after all", extra={"action": "came", "labs": len(came)})
            self._found["request_lost"] -= len(came)
        self._apply(for_sure, for_sure.differences)

    def _leave_open(self, differences: list[Difference], why: str) -> None:
        """Count as undecided what is not proven: a message came meanwhile, or the broker went away."""
        for one in differences:
            self._log(logging.WARNING, one, f"undecided: {why}", "undecided")
        self._found["request_lost"] -= len(differences)
        self._undecided += len(differences)

    def _apply(self, comparison: Comparison, differences: list[Difference]) -> None:
        ours: list[Difference] = []
        for one in differences:
            if one.repair is None:
                self._log(logging.WARNING, one, "a person has to look", "difference")
            elif _is_for_health(comparison, one):
                self._log(logging.WARNING, one, "left to the health check", "difference")
            else:
                ours.append(one)
        repairs = Repairs(
            sources=self._sources,
            as_of=comparison.inventory.now,
            pod_name=self._context.settings.pod_name,
            configs=lambda: self._context.configs,
            task_name=tasks.SYNC_LAB_STATUS,
            restarts=dict.fromkeys(self._settings.restart_causes, self._settings.max_restarts),
        )
        try:
            for one, done, what in repairs.run(ours):
                self._repaired[one.kind.value] += done
                level, action = (logging.INFO, "repaired") if done else (logging.WARNING, "difference")
                self._log(level, one, what, action)
        finally:
            self._restarted += repairs.restarted
        self._tell(repairs.unreachable)
        for refused in repairs.remakes.refusals():
            at = comparison.inventory.now
            tell_refused(self._context, refused, EventType.SYNC_REFUSED, f"{refused.sentence}.", at=at)

    def _tell(self, unreachable: list[Difference]) -> None:
        """Tell the administrator, once for each lab, that it runs where nobody can reach it."""
        if not unreachable:
            return
        # No cause of a failure: that of a lab which becomes FAILED later is to be told as well.
        news = [
            NewNotification(
                event_type=EventType.UNREACHABLE,
                cause="service_gone",
                audience=Audience.ADMIN,
                message="This lab runs without its Service, so nobody can reach it.",
                task_id=self._context.record.task_id,
                lab_instance_id=one.lab,
                facts={"object": one.object},
            )
            for one in unreachable
        ]
        added = self._context.labs.transaction(lambda cursor: [add_notification(cursor, one) for one in news])
        for notification_id in added:
            self._context.notify(notification_id)


def _url_template(context: TaskContext) -> str | None:
    try:
        return context.configs.lab_settings().connection_url
    except JobError as exc:
        extra = {"action": "addresses_not_compared"}
        logger.warning("addresses of labs are not compared: %s", exc.evidence or exc, extra=extra)
        return None


def _is_for_health(comparison: Comparison, one: Difference) -> bool:
    """Tell whether a Pod ended so lately that the health check will say why."""
    if one.kind is not Kind.POD_ENDED or one.since is None:
        return False
    return one.since > comparison.inventory.now - timedelta(seconds=HEALTH_FIRST_S)


def _counts(counter: Counter[str]) -> dict[str, int]:
    return {kind: count for kind, count in counter.items() if count}


def _error(exc: CouldNotLook) -> JobError:
    """Return the error of the task; the database's own says it best."""
    cause = exc.__cause__
    if isinstance(cause, JobError):
        return cause
    if isinstance(cause, (ApiError, ApiUnavailable)):
        return api_failure(cause)
    return Failure.CONFIGURATION_MISSING.error(key="LAB_NAMESPACE", evidence=str(exc))
