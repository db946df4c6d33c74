"""Print the speed and cost of starting labs beside those of a warm Celery worker: `make bench`.

All figures are measured in one run on the cluster of the environment; seconds after the publish,
p50 / p95. The profile with spares is put back at the end.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pika

from deploy.demo.platform import PLATFORM, Platform, eventually
from deploy.demo.timeline import JobWatch
from dispatcher.topology import QUEUE_HIGH, QUEUE_NORMAL
from tests.bench import celery_peer
from tests.bench.measure import (
    RESOURCES,
    Figures,
    burst,
    percentiles,
    publisher,
    singles,
    spare_memory_mib,
)


def say(text: str) -> None:
    """Print progress, apart from the figures."""
    print(text, file=sys.stderr, flush=True)


def apply_spares(*options: str) -> None:
    """Render the ScaledJobs with these spares and apply them."""
    rendered = subprocess.run(
        [sys.executable, "-m", "keda", "--image", os.environ["JOB_IMAGE"], *options],
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


def wait_for_spares(platform: Platform, count: int) -> None:
    """Wait until just the spares are there, warm, and every other Job is done."""

    def settled() -> bool:
        jobs = platform.batch.list_namespaced_job(PLATFORM, label_selector="autolabs.io/queue").items
        active = [job for job in jobs if job.status.active]
        return (
            consumers(QUEUE_NORMAL) == count and consumers(QUEUE_HIGH) == count and len(active) == 2 * count
        )

    eventually(settled, timeout_s=60, what=f"{count} spares per queue")


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


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--singles", type=int, default=15, help="labs started one after the other")
    parser.add_argument("--burst", type=int, default=30, help="labs started at once")
    parser.add_argument("--no-peer", action="store_true", help="leave the Celery worker out")
    arguments = parser.parse_args()
    platform = Platform()
    lines = [f"{'':34}" + "".join(f"{h:>16}" for h in ("->Job", "->container", "->claim", "->RUNNING"))]
    bursts: list[str] = []
    costs: list[str] = []
    with JobWatch(platform) as jobs:
        for name, options, spares in (
            ("with a spare", (), 1),
            ("without spares", ("--spares", "0"), 0),
        ):
            say(f"profile {name}: {arguments.singles} singles, then {arguments.burst} at once")
            apply_spares(*options)
            end_waiting_containers(platform)
            wait_for_spares(platform, spares)
            if spares:
                memory = spare_memory_mib(platform)
            settle: Callable[[], None] = lambda spares=spares: wait_for_spares(platform, spares)  # type: ignore[misc]  # noqa: E731
            single = singles(platform, jobs, publisher(platform), arguments.singles, settle)
            lines.append(row(f"{arguments.singles} singles, {name}", single))
            settle()
            took_s, many = burst(platform, jobs, publisher(platform), arguments.burst)
            lines.append(row(f"{arguments.burst} at once, {name}", many))
            bursts.append(f"{arguments.burst} at once, {name}: all RUNNING after {took_s:.1f} s")
            costs.append(
                f"one job container, {name}: {statistics.median(single.cpu_s):.2f} CPU s,"
                f" peak {max(single.peak_mib):.0f} MiB"
            )
        apply_spares()
        if not arguments.no_peer:
            say("peer: a warm Celery worker, -c 4")
            with celery_worker(4) as publish:
                single = singles(platform, jobs, publish, arguments.singles, lambda: None)
                lines.append(row(f"{arguments.singles} singles, warm Celery -c 4", single))
                took_s, many = burst(platform, jobs, publish, arguments.burst)
                lines.append(row(f"{arguments.burst} at once, warm Celery -c 4", many))
                bursts.append(
                    f"{arguments.burst} at once, warm Celery -c 4: all RUNNING after {took_s:.1f} s"
                )
    print("Seconds after the publish, p50 / p95\n" + "\n".join(lines))
    print("\n".join(bursts + costs))
    print(f"one spare, waiting: {memory:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
