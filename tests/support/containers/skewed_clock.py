"""Containers whose clock is wrong, as KEDA would start them for the two queues that labs need."""

from __future__ import annotations

import itertools
import threading
from datetime import datetime, timedelta, timezone

from dispatcher.broker import topology
from tests.support.containers.container import Containers, Process
from tests.support.waiting import HANG_S

_QUEUES = (topology.QUEUE_NORMAL, topology.QUEUE_HIGH)


class SkewedContainers:
    """One container that waits at each queue, and another when it is done; each has the next clock."""

    def __init__(self, containers: Containers, skews: list[timedelta]) -> None:
        self._containers = containers
        self._skews = itertools.cycle(skews)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="starter")
        self.started: list[tuple[Process, timedelta]] = []

    def __enter__(self) -> SkewedContainers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(HANG_S)

    def _run(self) -> None:
        waiting: dict[str, Process] = {}
        while not self._stop.is_set():
            for queue in _QUEUES:
                if queue not in waiting or waiting[queue].popen.poll() is not None:
                    waiting[queue] = self._start(queue)
            self._stop.wait(0.05)

    def _start(self, queue: str) -> Process:
        skew = next(self._skews)
        process = self._containers.start(
            queue=queue,
            module="tests.support.containers.skewed_job",
            CLAIM_WAIT_S=30,
            TEST_SKEW_S=round(skew.total_seconds()),
        )
        self.started.append((process, skew))
        return process

    def seen_skews(self) -> list[tuple[timedelta, timedelta]]:
        """Return the skew that was wanted and the one in its log, for each container that wrote one."""
        found = []
        for process, skew in self.started:
            if lines := process.lines():
                written = datetime.fromtimestamp(process.log.stat().st_mtime, timezone.utc)
                found.append((skew, datetime.fromisoformat(lines[-1]["ts"]) - written))
        return found
