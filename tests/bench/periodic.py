"""Print what the periodic tasks cost with ten thousand labs: `python -m tests.bench.periodic`.

The labs are rows in a database of their own, Pods on fake nodes, Services and NetworkPolicies in a namespace
of their own. The tasks run as in their CronJobs: `python -m cronjobs health`, and `sync`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from typing import Any

from tests.bench.labs import Labs, many_labs
from tests.bench.measured import Cost, cost_of
from tests.bench.progress import say

LABS = 10_000
#: Seconds in which they are there, at most.
MAKE_TIMEOUT_S = 1200.0
#: What a run is to stay below.
AIM_S, AIM_MIB = 30, 256
#: Of each task with labs that are well; the table has the worst of each figure.
RUNS = 3
#: No run takes this long, peers included.
TIMEOUT_S = 600.0
#: Labs of the peer that asks for each Pod by its name.
ASKED = 500


@dataclass(slots=True)
class Report:
    """What is printed."""

    labs: int
    rows: list[tuple[str, Cost, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, cost: Cost, remark: str = "") -> None:
        """Add a run."""
        say(f"{name}: {cost.wall_s:.1f} s, {cost.cpu_s:.1f} CPU s, {cost.peak_mib:.0f} MiB  {remark}")
        self.rows.append((name, cost, remark))

    def lines(self) -> list[str]:
        """Return the table."""
        title = f"{self.labs:,} labs, one run (aims {AIM_S} s, {AIM_MIB} MiB)"
        return [
            f"{title:48}{'wall s':>9}{'CPU s':>9}{'peak MiB':>10}",
            *(f"{name:48}{cost.cells()}  {remark}".rstrip() for name, cost, remark in self.rows),
            *self.notes,
        ]


def run_task(task: str, environ: dict[str, str]) -> tuple[Cost, dict[str, Any]]:
    """Run a task as its CronJob does; return its cost, and the last line of its log."""
    cost = cost_of("-m", "cronjobs", task, environ=environ, timeout_s=TIMEOUT_S)
    log = [json.loads(line) for line in cost.output.splitlines() if line.startswith("{")]
    return cost, next(line for line in reversed(log) if line["action"] == "periodic_done")


def measure_well(labs: Labs, report: Report) -> None:
    """Run the tasks while every lab is well."""
    for task, seen in (("health", "looked_at"), ("sync", "rows")):
        runs = [run_task(task, labs.environ) for _ in range(RUNS)]
        for _, result in runs:
            expect(task, result, **{seen: labs.count})
        worst = Cost.worst([cost for cost, _ in runs])
        report.add(f"{task}, all labs well (worst of {RUNS})", worst)


def measure_drift(labs: Labs, report: Report) -> None:
    """Run each task once after something happened to one lab in a hundred."""
    some = labs.one_in_a_hundred()
    labs.forget(some)
    cost, result = run_task("sync", labs.environ)
    expect("sync", result, repaired={"orphan": 3 * len(some)})
    report.add("sync, 1 in 100 without its row", cost, f"{3 * len(some)} objects deleted")
    some = labs.one_in_a_hundred()
    labs.evict(some)
    cost, result = run_task("health", labs.environ)
    expect("health", result, failed=len(some), put_off=0)
    report.add("health, 1 in 100 evicted", cost, f"{len(some)} labs failed")


def measure_peers(labs: Labs, report: Report) -> None:
    """Look at the Pods as others would."""
    environ = {**labs.environ, "KUBECONFIG": os.environ["KUBECONFIG"]}
    peer = ("-m", "tests.bench.health_peer")
    cost = cost_of(*peer, "list", environ=environ, timeout_s=TIMEOUT_S)
    expect("the list", json.loads(cost.output), labs=labs.count, not_ready=0)
    report.add("a look with the kubernetes package, one list", cost)
    asked = min(ASKED, labs.count)
    cost = cost_of(*peer, "get", str(asked), environ=environ, timeout_s=TIMEOUT_S)
    result = json.loads(cost.output)
    expect("the GETs", result, labs=asked, not_ready=0)
    total_s = cost.wall_s + result["looked_s"] * (labs.count / asked - 1)
    report.add(f"the same, a GET for each of {asked}", cost, f"{total_s:.0f} s for {labs.count:,}")


def expect(what: str, result: dict[str, Any], **expected: object) -> None:
    """Raise unless a run found what there is: a figure of anything else says nothing."""
    found = {key: result.get(key) for key in expected}
    if found != expected:
        raise RuntimeError(f"{what} found {found} instead of {expected}: {result}")


def run(count: int) -> list[str]:
    """Measure on the servers of the environment, and return what to print.

    A SIGTERM ends it as a Ctrl-C does: what was made is removed.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    report = Report(count)
    with many_labs(count, timeout_s=MAKE_TIMEOUT_S) as labs:
        measure_well(labs, report)
        measure_peers(labs, report)
        measure_drift(labs, report)
    made, removed = f"made in {labs.made_s:.0f} s", f"removed in {labs.removed_s:.0f} s"
    report.notes.append(f"{3 * count:,} objects and {count:,} rows: {made}, {removed}")
    return report.lines()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.periodic", description=__doc__)
    parser.add_argument("--labs", type=int, default=LABS, help=f"labs (default {LABS})")
    arguments = parser.parse_args()
    print("\n".join(run(arguments.labs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
