"""Measure starts of labs: one after the other, and many at once."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone

from deploy.demo.platform import PLATFORM, Platform, eventually
from deploy.demo.timeline import JobWatch

#: Small enough for a burst of 30 on two cores.
RESOURCES = {"cpu": "250m", "memory": "128Mi", "storage": "64Mi"}

#: Publish a create for a PENDING row.
Publish = Callable[[int], object]


@dataclass(slots=True)
class Figures:
    """Seconds after the publish, per start of a lab."""

    job: list[float] = field(default_factory=list)
    container: list[float] = field(default_factory=list)
    claim: list[float] = field(default_factory=list)
    running: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)

    def add(self, platform: Platform, lab_instance_id: int, published_at: datetime, jobs: JobWatch) -> None:
        """Take the figures of one RUNNING lab; a peer's lab has no ledger row."""

        def seconds(at: datetime) -> float:
            return (at - published_at).total_seconds()

        started_at = platform.lab(lab_instance_id).started_at
        if started_at is not None:
            self.running.append(seconds(started_at))
        for run in platform.runs(lab_instance_id)[:1]:
            details = run["details"]
            self.claim.append(seconds(datetime.fromisoformat(details["claimed_at"])))
            self.container.append(seconds(datetime.fromisoformat(details["container_started_at"])))
            if run["job_name"] in jobs.created:
                self.job.append(seconds(jobs.created[run["job_name"]]))
            self.cpu_s.append(details["usage"]["cpu_s"])
            self.peak_mib.append(details["usage"]["peak_mib"])


def percentiles(values: list[float]) -> str:
    """Return "p50 / p95", or a dash for nothing measured."""
    if not values:
        return "-"
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return f"{statistics.median(ordered):.2f} / {p95:.2f}"


def publisher(platform: Platform) -> Publish:
    """Return our way to publish a create."""

    def publish(lab_instance_id: int) -> object:
        return platform.dispatcher.create_lab(
            lab_instance_id=lab_instance_id,
            lab_id=456,
            student_id=789,
            docker_image=platform.lab_image,
            resources=RESOURCES,
        )

    return publish


def singles(
    platform: Platform, jobs: JobWatch, publish: Publish, count: int, settle: Callable[[], None]
) -> Figures:
    """Start and stop labs one after the other; `settle` waits until the next may be published."""
    figures = Figures()
    for _ in range(count):
        settle()
        lab_instance_id = platform.add_lab()
        published_at = datetime.now(timezone.utc)
        publish(lab_instance_id)
        platform.wait_for_status(lab_instance_id, "RUNNING")
        figures.add(platform, lab_instance_id, published_at, jobs)
        remove(platform, [lab_instance_id])
    return figures


def burst(platform: Platform, jobs: JobWatch, publish: Publish, count: int) -> tuple[float, Figures]:
    """Ask for many labs at once; return the seconds until the last is RUNNING, and the figures."""
    figures = Figures()
    labs = [platform.add_lab() for _ in range(count)]
    published: dict[int, datetime] = {}
    started = time.monotonic()
    for lab_instance_id in labs:
        published[lab_instance_id] = datetime.now(timezone.utc)
        publish(lab_instance_id)

    def left() -> list[dict[str, object]]:
        return platform.query(
            "SELECT id, status, error_message FROM lab_instances WHERE id = ANY(%s) AND status <> 'RUNNING'",
            labs,
        )

    eventually(lambda: not left(), timeout_s=180, what=f"{count} labs RUNNING", last=left)
    took_s = time.monotonic() - started
    for lab_instance_id in labs:
        figures.add(platform, lab_instance_id, published[lab_instance_id], jobs)
    remove(platform, labs)
    return took_s, figures


def remove(platform: Platform, labs: list[int]) -> None:
    """Delete labs and wait until nothing is left of them."""
    for lab_instance_id in labs:
        platform.dispatcher.delete_lab(lab_instance_id=lab_instance_id, force=True)
    for lab_instance_id in labs:
        platform.wait_for_status(lab_instance_id, "STOPPED", timeout_s=180)


def spare_memory_mib(platform: Platform) -> float:
    """Return the working set of a container that waits for a message, as the kubelet reports it."""
    since = datetime.now(timezone.utc)

    def look() -> list[float]:
        node = platform.core.list_node().items[0].metadata.name
        answer = platform.core.connect_get_node_proxy_with_path(node, "stats/summary", _preload_content=False)
        waiting = {
            pod.metadata.name
            for pod in platform.core.list_namespaced_pod(PLATFORM, label_selector="autolabs.io/queue").items
            if pod.status.phase == "Running"
        }
        return [
            container["memory"]["workingSetBytes"] / 2**20
            for pod in json.loads(answer.data)["pods"]
            if pod["podRef"]["name"] in waiting
            for container in pod.get("containers", [])
            if datetime.fromisoformat(container["memory"]["time"]) > since
        ]

    return max(eventually(look, timeout_s=60, what="the kubelet's figures of the spares"))
