"""What became of the labs of a loop, as its backend, the cluster and `autolabs verify` say it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dispatcher.tasks import CREATE_LAB_POD
from tests.support.containers.container import ROOT
from tests.support.outages.loop import LABS, Loop

KINDS = ["NetworkPolicy", "Pod", "Service"]


@dataclass
class Outcome:
    """How the labs of a loop stand."""

    running: int = 0
    stopped: int = 0
    failed: list[str] = field(default_factory=list)
    #: What is not, or not yet, as it has to be, one sentence each.
    wrong: list[str] = field(default_factory=list)
    lost: int = 0
    doubled: int = 0
    retries: int = 0
    redeliveries: int = 0


def look(loop: Loop, causes: frozenset[str]) -> Outcome:
    """Compare every lab with what was asked for; `causes` are those for which it may have FAILED."""
    rows, ledger, objects = loop.rows(), loop.ledger(), loop.objects()
    seen = Outcome(
        retries=sum(run["outcome"] == "retried" for run in ledger),
        redeliveries=sum(run["redelivered"] for run in ledger),
    )
    numbers = Counter(row["lab_id"] for row in rows)
    for number in range(1, LABS + 1):
        if numbers[number] != 1:
            seen.wrong.append(f"request {number} has {numbers[number]} rows")
    seen.lost = sum(numbers[number] == 0 for number in range(1, LABS + 1))
    seen.doubled = sum(count - 1 for count in numbers.values())
    for row in rows:
        runs = [run for run in ledger if run["lab_instance_id"] == row["id"]]
        _look_at_lab(seen, row, runs, objects.pop(row["id"], []), loop, causes)
    seen.wrong += [f"lab {lab} has objects and no row" for lab in objects]
    return seen


def _look_at_lab(
    seen: Outcome,
    row: dict[str, Any],
    runs: list[dict[str, Any]],
    objects: list[dict[str, Any]],
    loop: Loop,
    causes: frozenset[str],
) -> None:
    lab, status = f"lab {row['id']}", row["status"]
    kinds = sorted(item["kind"] for item in objects)
    creates = [run for run in runs if run["task_name"] == CREATE_LAB_POD]
    started = sum(run["outcome"] == "succeeded" for run in creates)
    stop = row["lab_id"] in loop.to_be_stopped
    seen.running += status == "RUNNING"
    seen.stopped += status == "STOPPED"
    seen.lost += status == "PENDING"
    if started > 1 or len(kinds) > len(set(kinds)):
        seen.doubled += 1
        seen.wrong.append(f"{lab} was started {started} times, has {kinds}")
    if row["error_category"]:
        cause = next((run["details"]["cause"] for run in reversed(creates) if "cause" in run["details"]), "?")
        seen.failed.append(cause)
        if cause not in causes:
            seen.wrong.append(f"{lab} FAILED: {row['error_message']} [{cause}]")
    if status == "RUNNING" and not stop:
        (pod,) = [item for item in objects if item["kind"] == "Pod"] or [{}]
        if kinds != KINDS or not _is_ready(pod) or started != 1:
            seen.wrong.append(f"{lab} is RUNNING with {kinds}, started {started} times")
    elif (status == "STOPPED" and stop) or (status == "FAILED" and not stop):
        if kinds:
            seen.wrong.append(f"{lab} is {status} with {kinds}")
    else:
        shown = [(run["task_name"][15:], run["attempt"], run["outcome"]) for run in runs]
        seen.wrong.append(f"{lab} is {status}, asked to {'stop' if stop else 'run'}: {shown}")


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def differences(loop: Loop) -> list[str]:
    """Run `autolabs verify`; return what it says of the loop's labs, and of messages held by nobody."""
    words = ["-m", "console", "verify", "--json", "--grace", "1", "--settle", "1"]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=dict(loop.place.environ),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if done.returncode not in (0, 1):
        return [done.stderr]
    ours = {row["id"] for row in loop.rows()}
    return [
        f"{one['kind']} of lab {one['lab_instance_id']}: {one['object']} is {one['is']}"
        for one in json.loads(done.stdout)["differences"]
        if one["lab_instance_id"] in ours or one["lab_instance_id"] is None
    ]
