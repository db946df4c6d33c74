"""Thousands of labs that are there without anybody having started them, and what can happen to them."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

from jobs.config.lifetimes import LifeSettings
from tests.bench.own_platform import own_platform, remove_left_over, remove_namespace
from tests.bench.progress import say
from tests.support.cluster import kwok
from tests.support.cluster.bulk_api import BulkApi
from tests.support.cluster.fake_nodes import FakeNodes
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.labs.many_labs import add_objects, add_rows, lab_manifests, not_running
from tests.support.waiting import eventually

#: Fake nodes; a real one carries a hundred labs, but each costs a heartbeat.
NODES = 10
#: Seconds until kwok has made the last Pod Ready.
_READY_TIMEOUT_S = 300.0


@dataclass(slots=True)
class Labs:
    """RUNNING labs; those to which something happened are no more among `ids`."""

    platform: OwnPlatform
    api: BulkApi = field(repr=False)
    ids: list[int]
    #: Seconds.
    made_s: float = 0.0
    removed_s: float = 0.0

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.ids)

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a container that works for these labs alone."""
        return self.platform.containers.environ

    def one_in_a_hundred(self) -> list[int]:
        """Return the oldest hundredth of those to which nothing has happened."""
        some = self.ids[: max(1, len(self.ids) // 100)]
        del self.ids[: len(some)]
        return some

    def forget(self, labs: list[int]) -> None:
        """Delete their rows, and return once their objects are old enough to count as left behind."""
        self.platform.database.rows("DELETE FROM lab_instances WHERE id = ANY(%s)", labs)
        namespace = self.platform.namespace
        path = f"{namespace.collections['NetworkPolicy']}/{_name(labs[-1], namespace.name)}"
        last = self.api.call("GET", path)["metadata"]["creationTimestamp"]
        grown_up = datetime.fromisoformat(last) + timedelta(seconds=LifeSettings().orphan_grace_s + 2)
        eventually(lambda: datetime.now(timezone.utc) > grown_up, 300, what="their objects are old enough")

    def evict(self, labs: list[int]) -> None:
        """Let the node have ended their Pods for want of memory."""
        status = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
        namespace = self.platform.namespace

        def evict(lab: int) -> None:
            path = f"{namespace.collections['Pod']}/{_name(lab, namespace.name)}/status"
            self.api.call("PATCH", path, {"status": status})

        self.api.each(labs, evict)


@contextmanager
def many_labs(count: int, *, timeout_s: float) -> Iterator[Labs]:
    """Yield that many labs that are well; nothing of them is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="autolabs-bench-") as name, BulkApi() as api:
        folder = Path(name)
        with contextlib.redirect_stdout(sys.stderr):
            kwok.binary()
        remove_left_over(api)
        with FakeNodes.create(NODES, folder) as nodes, own_platform(api, folder) as platform:
            started = time.monotonic()
            labs = Labs(platform, api, list(add_rows(platform.database, count)))
            say(f"{count:,} rows after {time.monotonic() - started:.0f} s; now their objects")
            try:
                add_objects(api, nodes, platform.namespace, labs.ids, timeout_s=timeout_s)
                eventually(
                    lambda: not not_running(api, platform.namespace), _READY_TIMEOUT_S, what="all Pods run"
                )
                labs.made_s = time.monotonic() - started
                say(f"{3 * count:,} objects after {labs.made_s:.0f} s")
                yield labs
            finally:
                say("removing them")
                started = time.monotonic()
                remove_namespace(api, platform.namespace.name)
                labs.removed_s = time.monotonic() - started


def _name(lab: int, namespace: str) -> str:
    return str(lab_manifests(lab, namespace).pod["metadata"]["name"])
