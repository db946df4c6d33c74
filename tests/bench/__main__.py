"""Print the speed of publishing beside Celery's, that of starting labs beside a warm Celery worker, and what
the periodic tasks cost with ten thousand labs.

`make bench`. All figures are measured in one run on the cluster of the environment; those of labs are
seconds after the publish, p50 / p95. The default spares are put back at the end, whatever happens.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

import pika

from deploy.demo.platform import PLATFORM, Platform, eventually
from deploy.demo.timeline import JobWatch
from deploy.local.platform_part import node_cores
from dispatcher.broker.topology import QUEUE_HIGH, QUEUE_NORMAL
from tests.bench import celery_peer, periodic, publishing
from tests.bench.measure import (
    RESOURCES,
    Figures,
    burst,
    percentiles,
    publisher,
    singles,
    spare_memory_mib,
)
from tests.bench.progress import say

#: For the class of 30: a container each, started ahead.
MANY_SPARES = 30


def _kubectl(*words: str) -> str:
    return subprocess.run(["kubectl", *words], check=True, capture_output=True, text=True).stdout


def apply_spares(*options: str) -> None:
    """Render the ScaledJobs with these spares and apply them."""
    rendered = subprocess.run(
        [
            *(sys.executable, "-m", "keda", "--image", os.environ["JOB_IMAGE"]),
            *("--cores", f"{node_cores(_kubectl):g}", *options),
        ],
        check=True,
        capture_output=True,
    )
    subprocess.run(
        ["kubectl", "apply", "--server-side", "--force-conflicts", "-f", "-"],
        check=True,
        input=rendered.stdout,
        capture_output=True,
    )


def consumers(queue: str) -> int:
    """Return how many containers wait for a message of the queue."""
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
    count: int = connection.channel().queue_declare(queue, passive=True).method.consumer_count
    connection.close()
    return count


def wait_for_spares(platform: Platform, *, normal: int, high: int) -> None:
    """Wait until just these spares are there, warm and settled, and every other Job is done."""

    def look() -> tuple[int, int, int, int, bool]:
        jobs = platform.batch.list_namespaced_job(PLATFORM, label_selector="autolabs.io/queue").items
        active = [job for job in jobs if job.status.active]
        # The end of a container's start keeps both cores busy.
        recently = datetime.now(timezone.utc) - timedelta(seconds=4)
        settled = all(job.status.start_time < recently for job in active)
        waiting = consumers(QUEUE_NORMAL), consumers(QUEUE_HIGH)
        warm = warm_containers(platform, [job.metadata.name for job in active])
        return *waiting, len(active), warm, settled

    wanted = (normal, high, normal + high, normal + high, True)
    eventually(
        lambda: look() == wanted,
        # On two cores 30 containers take half a minute to start; a broker counts a consumer whose node did
        # not say goodbye for two heartbeats.
        timeout_s=180 + 6 * normal,
        what=f"consumers of {QUEUE_NORMAL} and {QUEUE_HIGH}, active Jobs, warm ones: {wanted}",
        last=look,
    )


def warm_containers(platform: Platform, jobs: Sequence[str]) -> int:
    """Return how many of these Jobs' containers are connected to the database, as a spare is once it is warm.

    A container that was deleted stays connected, for the server, until its keepalive fails.
    """
    rows = platform.query(
        "SELECT DISTINCT application_name AS name FROM pg_stat_activity WHERE application_name LIKE %s",
        "autolabs-job %",
    )
    # A pod's name begins with its Job's; the server cuts names at 63 bytes.
    return sum(any(row["name"].startswith(f"autolabs-job {job}"[:63]) for row in rows) for job in jobs)


def end_waiting_containers(platform: Platform) -> None:
    """Delete the Jobs that wait as spares, so that none is left from another profile."""
    platform.batch.delete_collection_namespaced_job(
        PLATFORM, label_selector="autolabs.io/queue", propagation_policy="Background"
    )


@contextmanager
def celery_worker(concurrency: int) -> Iterator[Callable[[int], object]]:
    """Run a warm worker and yield the way to publish to it."""
    command = [sys.executable, "-m", "celery", "-A", "tests.bench.celery_peer", "worker"]
    command += ["-c", str(concurrency), "-Q", celery_peer.QUEUE, "--without-gossip", "--without-mingle"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as worker:
        try:
            eventually(
                lambda: consumers_or_none(celery_peer.QUEUE), timeout_s=60, what="a warm Celery worker"
            )

            def publish(lab_instance_id: int) -> object:
                return celery_peer.create_lab_pod.apply_async(
                    kwargs={
                        "lab_instance_id": lab_instance_id,
                        "lab_id": 456,
                        "student_id": 789,
                        "docker_image": os.environ["LAB_IMAGE"],
                        "resources": RESOURCES,
                    }
                )

            yield publish
        finally:
            worker.terminate()
            worker.wait(30)


def consumers_or_none(queue: str) -> int | None:
    """Return the consumers of a queue that may not exist yet."""
    try:
        return consumers(queue) or None
    except pika.exceptions.ChannelClosedByBroker:
        return None


def row(name: str, figures: Figures) -> str:
    """Return one line of the table."""
    cells = (figures.job, figures.container, figures.claim, figures.running)
    return f"{name:34}" + "".join(f"{percentiles(values):>16}" for values in cells)


@dataclass(slots=True)
class Report:
    """What is printed at the end."""

    table: list[str] = field(default_factory=list)
    bursts: list[str] = field(default_factory=list)
    costs: list[str] = field(default_factory=list)

    def add_singles(self, name: str, figures: Figures, count: int) -> None:
        """Add a line about labs started one after the other."""
        self.table.append(row(f"{count} singles, {name}", figures))

    def add_burst(self, name: str, took_s: float, figures: Figures, count: int) -> None:
        """Add the lines about labs started at once."""
        self.table.append(row(f"{count} at once, {name}", figures))
        self.bursts.append(f"{count} at once, {name}: all RUNNING after {took_s:.1f} s")

    def print(self) -> None:
        """Print the table, then the sentences."""
        heads = ("->Job", "->container", "->claim", "->RUNNING")
        print("Seconds after the publish, p50 / p95")
        print("\n".join(["".join([" " * 34, *(f"{head:>16}" for head in heads)]), *self.table]))
        print("\n".join(self.bursts + self.costs))


def measure_profile(
    platform: Platform, jobs: JobWatch, report: Report, arguments: argparse.Namespace, spares: int
) -> None:
    """Measure singles and a burst with this many spares of each kind, 0 or the default of 1."""
    name = "with a spare" if spares else "without spares"
    say(f"profile {name}: {arguments.singles} singles, then {arguments.burst} at once")
    apply_spares(*(() if spares else ("--spares", "0")))
    end_waiting_containers(platform)

    def settle() -> None:
        wait_for_spares(platform, normal=spares, high=spares)

    settle()
    if spares:
        report.costs.append(f"one spare, waiting: {spare_memory_mib(platform):.0f} MiB")
    single = singles(platform, jobs, publisher(platform), arguments.singles, settle)
    report.add_singles(name, single, arguments.singles)
    settle()
    took_s, many = burst(platform, jobs, publisher(platform), arguments.burst)
    report.add_burst(name, took_s, many, arguments.burst)
    report.costs.append(
        f"one job container, {name}: {statistics.median(single.cpu_s):.2f} CPU s,"
        f" peak {max(single.peak_mib):.0f} MiB"
    )


def measure_many_spares(
    platform: Platform, jobs: JobWatch, report: Report, arguments: argparse.Namespace
) -> None:
    """Measure a burst with as many spares as a schedule would keep ahead of a class."""
    name = f"{MANY_SPARES} spares waiting"
    say(f"profile {name}: {arguments.burst} at once")
    bounds = (f"lab-operations={MANY_SPARES}", f"lab-operations={2 * MANY_SPARES}")
    apply_spares("--spares", bounds[0], "--max-replicas", bounds[1])
    end_waiting_containers(platform)
    wait_for_spares(platform, normal=MANY_SPARES, high=1)
    took_s, many = burst(platform, jobs, publisher(platform), arguments.burst)
    report.add_burst(name, took_s, many, arguments.burst)


def measure_peer(platform: Platform, jobs: JobWatch, report: Report, arguments: argparse.Namespace) -> None:
    """Measure the same with a warm Celery worker."""
    name = "warm Celery -c 4"
    say(f"peer: {name}")
    with celery_worker(4) as publish:
        single = singles(platform, jobs, publish, arguments.singles, lambda: None)
        report.add_singles(name, single, arguments.singles)
        took_s, many = burst(platform, jobs, publish, arguments.burst)
        report.add_burst(name, took_s, many, arguments.burst)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--singles", type=int, default=15, help="labs started one after the other")
    parser.add_argument("--burst", type=int, default=30, help="labs started at once")
    parser.add_argument("--no-peer", action="store_true", help="leave the Celery worker out")
    parser.add_argument(
        "--no-many-spares", action="store_true", help=f"leave the burst with {MANY_SPARES} spares out"
    )
    parser.add_argument("--no-publishing", action="store_true", help="leave the dispatcher's speed out")
    parser.add_argument("--no-labs", action="store_true", help="leave the starts of labs out")
    parser.add_argument("--no-periodic", action="store_true", help="leave the periodic tasks out")
    parser.add_argument(
        "--periodic-labs",
        type=int,
        default=periodic.LABS,
        help=f"labs for the periodic tasks (default {periodic.LABS})",
    )
    arguments = parser.parse_args()
    Platform()  # says which settings are missing
    if not arguments.no_publishing:
        say("publishing: one process, in turns with Celery")
        print("\n".join([*publishing.run(), ""]), flush=True)
    if not arguments.no_labs:
        measure_labs(arguments)
    if not arguments.no_periodic:
        say(f"periodic tasks: {arguments.periodic_labs} labs on fake nodes")
        print("\n".join(["", *periodic.run(arguments.periodic_labs)]), flush=True)
    return 0


def measure_labs(arguments: argparse.Namespace) -> None:
    """Measure starts of labs, beside the warm worker, and print them."""
    platform = Platform()
    report = Report()
    with JobWatch(platform) as jobs:
        try:
            for spares in (1, 0):
                measure_profile(platform, jobs, report, arguments, spares)
            if not arguments.no_many_spares:
                measure_many_spares(platform, jobs, report, arguments)
        finally:
            apply_spares()
            # A rollout is gradual: without this, spares beyond the default would wait on.
            end_waiting_containers(platform)
        if not arguments.no_peer:
            wait_for_spares(platform, normal=1, high=1)
            measure_peer(platform, jobs, report, arguments)
    report.print()


if __name__ == "__main__":
    sys.exit(main())
