"""Print what the periodic tasks cost with ten thousand labs: `python -m tests.bench.periodic`.

The labs are rows in a database of their own, Pods on fake nodes, Services and NetworkPolicies in a namespace
of their own. The tasks run as in their CronJobs: `python -m cronjobs health`, and `sync`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.measured import Cost, cost_of
from tests.bench.own_platform import own_platform, remove_left_over, remove_namespace
from tests.support import kwok
from tests.support.bulk_api import BulkApi
from tests.support.fake_nodes import FakeNodes
from tests.support.many_labs import add_objects, add_rows, not_running
from tests.support.own_platform import OwnPlatform
from tests.support.waiting import eventually

#: What a run is to stay below.
AIM_S, AIM_MIB = 30, 256
#: No run takes this long, peers included.
TIMEOUT_S = 600.0
#: Fake nodes; a real one carries a hundred labs, but each costs a heartbeat.
NODES = 10
#: Labs of the peer that asks for each Pod by its name.
ASKED = 500


def say(text: str) -> None:
    """Print progress, apart from the figures."""
    print(text, file=sys.stderr, flush=True)


@dataclass(slots=True)
class Figures:
    """What is printed."""

    labs: int
    created_s: float = 0.0
    removed_s: float = 0.0
    rows: list[tuple[str, Cost, str]] = field(default_factory=list)

    def add(self, name: str, cost: Cost, remark: str = "") -> None:
        """Add a run."""
        say(f"{name}: {cost.wall_s:.1f} s, {cost.cpu_s:.1f} CPU s, {cost.peak_mib:.0f} MiB")
        self.rows.append((name, cost, remark))

    def lines(self) -> list[str]:
        """Return the table."""
        title = f"{self.labs:,} labs, a run (aims {AIM_S} s, {AIM_MIB} MiB)"
        return [
            f"{title:46}{'wall s':>9}{'CPU s':>9}{'peak MiB':>10}",
            *(f"{name:46}{cost.cells()}  {remark}".rstrip() for name, cost, remark in self.rows),
            f"{3 * self.labs:,} objects: made in {self.created_s:.0f} s, removed in {self.removed_s:.0f} s",
        ]


@contextmanager
def many_labs(count: int, figures: Figures, *, timeout_s: float) -> Iterator[OwnPlatform]:
    """Yield a platform with that many labs that are well."""
    with tempfile.TemporaryDirectory(prefix="autolabs-bench-") as name, BulkApi() as api:
        folder = Path(name)
        with contextlib.redirect_stdout(sys.stderr):
            kwok.binary()
        remove_left_over(api)
        with FakeNodes.create(NODES, folder) as nodes, own_platform(api, folder) as platform:
            started = time.monotonic()
            labs = add_rows(platform.database, count)
            add_objects(api, nodes, platform.namespace, labs, timeout_s=timeout_s)
            eventually(lambda: not not_running(api, platform.namespace), 120, what=f"{count} Pods run")
            figures.created_s = time.monotonic() - started
            say(f"{count} labs: {figures.created_s:.0f} s")
            try:
                yield platform
            finally:
                started = time.monotonic()
                say("removing them")
                remove_namespace(api, platform.namespace.name)
                figures.removed_s = time.monotonic() - started


def measure(platform: OwnPlatform, figures: Figures) -> None:
    """Run the tasks, then the peers."""
    environ = platform.containers.environ
    for words in (["dispatcher", "verify"],):
        cost = cost_of("-m", *words, environ=environ, timeout_s=TIMEOUT_S)
        figures.add(" ".join(words), cost, cost.output.splitlines()[-1])
    peer = {**environ, "KUBECONFIG": os.environ["KUBECONFIG"]}
    cost = cost_of("-m", "tests.bench.health_peer", "list", environ=peer, timeout_s=TIMEOUT_S)
    figures.add("kubernetes package, one list", cost, cost.output)
    asked = min(ASKED, figures.labs)
    cost = cost_of("-m", "tests.bench.health_peer", "get", str(asked), environ=peer, timeout_s=TIMEOUT_S)
    figures.add(f"kubernetes package, a GET for each of {asked}", cost, cost.output)


def run(labs: int, *, timeout_s: float) -> list[str]:
    """Measure on the servers of the environment, and return what to print."""
    figures = Figures(labs)
    with many_labs(labs, figures, timeout_s=timeout_s) as platform:
        measure(platform, figures)
    return figures.lines()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.periodic", description=__doc__)
    parser.add_argument("--labs", type=int, default=10_000, help="labs (default 10000)")
    parser.add_argument(
        "--timeout", type=float, default=900, help="seconds to make them in, at most (default 900)"
    )
    arguments = parser.parse_args()
    print("\n".join(run(arguments.labs, timeout_s=arguments.timeout)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
