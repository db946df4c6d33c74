"""Facts of labs for `autolabs explain`: valid values that a test changes in the one place it is about.

Last come the facts that many tests begin with, and what has to be said of whatever facts.
"""

from __future__ import annotations

import shlex
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

from console.commands import COMMANDS
from console.explain.explanation import explain
from console.explain.facts import (
    ActionRow,
    Cancellation,
    LabFacts,
    LabRow,
    NotificationRow,
    QueueSnapshot,
    Run,
    WaitingRow,
)
from dispatcher.cli.program import make_parser
from dispatcher.tasks import CREATE_LAB_POD, DELETE_LAB_POD

#: A teacher is on the phone.
NOW = datetime(2026, 11, 21, 9, 5, tzinfo=timezone.utc)
CREATE, DELETE = "task-create", "task-delete"


def at(seconds_ago: float) -> datetime:
    return NOW - timedelta(seconds=seconds_ago)


def make_lab(status: str = "PENDING", *, age_s: float = 300, **changes: Any) -> LabRow:
    valid: dict[str, Any] = {
        "id": 17,
        "lab_id": 3,
        "student_id": 42,
        "status": status,
        "celery_task_id": CREATE,
        "created_at": at(age_s),
        "expires_at": at(-3600),
    }
    if status == "RUNNING":
        valid |= {
            "started_at": at(age_s - 5),
            "connection_url": "http://10.0.0.7:8080/",
            "k8s_pod_name": "lab-instance-17-demo",
        }
    if status == "FAILED":
        valid |= {
            "failed_at": at(240),
            "error_category": "PERMANENT_IMAGE_ERROR",
            "error_message": "The image is wrong.",
        }
    if status == "STOPPED":
        valid |= {"stopped_at": at(60), "stop_requested_at": at(62)}
    return LabRow(**{**valid, **changes})


def make_run(outcome: str, *, ago_s: float = 10, id: int = 1, took_s: float = 2, **changes: Any) -> Run:
    delete = changes.pop("delete", False)
    valid: dict[str, Any] = {
        "id": id,
        "task_id": DELETE if delete else CREATE,
        "task_name": DELETE_LAB_POD if delete else CREATE_LAB_POD,
        "attempt": 1,
        "redelivered": False,
        "queue": "celery.lab_operations",
        "job_name": "lab-operations-x7k2p",
        "pod_name": "lab-operations-x7k2p-9zq4w",
        "claimed_at": at(ago_s),
        "finished_at": None if outcome == "started" else at(ago_s - took_s),
        "outcome": outcome,
        "details": {},
    }
    return Run(**{**valid, **changes})


def failed_run(cause: str, category: str, outcome: str = "failed", **changes: Any) -> Run:
    details = {"cause": cause, **changes.pop("details", {})}
    valid: dict[str, Any] = {
        "error_category": category,
        "error_message": f"It is {cause}.",
        "details": details,
    }
    return make_run(outcome, **{**valid, **changes})


def make_row(ago_s: float = 5, **changes: Any) -> WaitingRow:
    valid: dict[str, Any] = {
        "id": 5,
        "task_id": CREATE,
        "task_name": CREATE_LAB_POD,
        "created_at": at(ago_s),
        "next_attempt_at": at(ago_s),
    }
    return WaitingRow(**{**valid, **changes})


def make_notification(**changes: Any) -> NotificationRow:
    valid: dict[str, Any] = {
        "cause": "image_not_loadable",
        "told": "teacher",
        "error_category": "PERMANENT_IMAGE_ERROR",
        "message": "The image is wrong.",
        "created_at": at(240),
        "next_attempt_at": at(240),
    }
    return NotificationRow(**{**valid, **changes})


def make_action(action: str, *, ago_s: float = 5, delete: bool = False) -> ActionRow:
    name = DELETE_LAB_POD if delete else CREATE_LAB_POD
    return ActionRow(
        acted_at=at(ago_s),
        actor="anna@console",
        action=action,
        task_id=DELETE if delete else CREATE,
        task_name=name,
    )


def sight(messages: int | None = 0, consumers: int = 0, **changes: Any) -> QueueSnapshot:
    valid: dict[str, Any] = {
        "queue": "celery.lab_operations",
        "messages": messages,
        "consumers": consumers,
        "delayed": 0,
        "dead": 0,
    }
    return QueueSnapshot(**{**valid, **changes})


def cancelled(task_id: str = CREATE, *, ago_s: float = 5) -> Cancellation:
    return Cancellation(task_id=task_id, requested_at=at(ago_s))


def make_facts(lab: LabRow | None, *runs: Run, **changes: Any) -> LabFacts:
    valid = {"now": NOW, "lab_instance_id": 17, "lab": lab, "runs": runs, "health_checked_at": at(30)}
    return LabFacts(**{**valid, **changes})


PENDING, RUNNING, FAILED, STOPPED = map(make_lab, ("PENDING", "RUNNING", "FAILED", "STOPPED"))
ROOM, INVALID = "TEMPORARY_RESOURCE_ERROR", "PERMANENT_INVALID_REQUEST"
RETRIED = failed_run("no_room", ROOM, "retried", details={"retry_delay_s": 20.0})
DEAD_DELETE = failed_run("cluster_away", "TEMPORARY_NETWORK_ERROR", "dead_lettered", delete=True, ago_s=290)


class Case(NamedTuple):
    """Facts, and what is found: the situation, who acts, a part of what comes next and of a command."""

    facts: LabFacts
    situation: str
    who: str
    next: str
    command: str | None = None

    def check(self) -> None:
        """Explain the facts; each command is one that our parser takes, or kubectl's."""
        found = explain(self.facts)
        assert (found.situation, found.who.value) == (self.situation, self.who)
        assert self.next in found.next
        for command in found.commands:
            program, *arguments = shlex.split(command)
            assert program in ("autolabs", "kubectl")
            if program == "autolabs":
                assert make_parser(COMMANDS).parse_args(arguments).run
        if self.command == "":
            assert found.commands == ()
        elif self.command:
            assert any(self.command in command for command in found.commands), found.commands
