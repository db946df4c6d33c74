"""Labs that break in every way at once, and the health checks that find them.

What breaks a lab takes its time: a node is away after 50 s, a full disk is seen seldom, a program is started
again later each time. So all begin together, two checks find each half of them, and tests look at their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jobs.cluster.client import Manifest
from tests.support.cluster.fake_nodes import FakeNodes
from tests.support.labs.breakable_labs import HANGS_S, BreakableLabs
from tests.support.waiting import eventually

#: Limits that nothing reaches during a test.
_NEVER = {"unready_limit_s": 86_400, "crash_limit": 1000}
_AT_ONCE = {"unready_limit_s": 10}


@dataclass
class BrokenLabs:
    """The labs by what broke them, and what was seen of them."""

    labs: BreakableLabs
    ids: dict[str, int] = field(default_factory=dict)
    #: Case -> why it did not come as far as a check could find it.
    unbroken: dict[str, Exception] = field(default_factory=dict)
    #: What the checks said: of crashes and ends, of nodes and programs that are silent, and of nothing.
    first: dict[str, Any] = field(default_factory=dict)
    second: dict[str, Any] = field(default_factory=dict)
    third: dict[str, Any] = field(default_factory=dict)
    #: After the Pod of the lab was deleted that went on after it ran out of memory.
    last: dict[str, Any] = field(default_factory=dict)
    #: Lab -> its status after the first check, and after the last one.
    statuses: dict[str, str] = field(default_factory=dict)
    statuses_at_last: dict[str, str] = field(default_factory=dict)
    #: On a node that is away and not yet found, and on another.
    pod_away: Manifest = field(default_factory=dict)
    beside_it: dict[str, str] = field(default_factory=dict)
    #: The lab that was started in place of the one on the lost node.
    started_again: int = 0

    def broken(self, case: str) -> int:
        """Return the lab of a case; raise what kept it from breaking."""
        if case in self.unbroken:
            raise self.unbroken[case]
        return self.ids[case]

    def play(self, nodes: FakeNodes) -> None:
        """Break them, and check."""
        lost, kept = nodes.names
        for case, node in (("away", lost), ("evicted", kept), ("fine", kept)):
            self.ids[case] = self.labs.start_on(nodes, node)
        nodes.end_heartbeat(lost)
        told = {"filled": "fill", "eats": "eat", "crashes": "crash", "ate": "eat-once", "silent": "silent"}
        self.ids |= zip(told, self.labs.start(len(told)), strict=True)
        (self.ids["ended"],) = self.labs.start(restartPolicy="Never")
        for case, what in {**told, "ended": "crash"}.items():
            self.labs.tell(self.ids[case], what)
        self._check_first()
        self._check_again(nodes)

    def _check_first(self) -> None:
        self._wait("ended", lambda pod: pod["status"]["phase"] == "Failed")
        self._wait("silent", lambda pod: _ready(pod) == "False")
        self._wait("ate", lambda pod: _container(pod)["restartCount"] == 1 and _ready(pod) == "True")
        # Last: while it waits for its next start, of which the check must not see the first moment.
        self._wait("eats", _loops)
        self._wait("crashes", lambda pod: _loops(pod) and _loops(self.labs.pod(self.ids["eats"])))
        self.labs.set(**{**_NEVER, "crash_limit": 2})
        self.first = self.labs.check()
        self.statuses = self._statuses()

    def _check_again(self, nodes: FakeNodes) -> None:
        lost, kept = nodes.names
        # The first check may have found it, and taken its Pod away.
        if self.statuses["filled"] == "RUNNING":
            self._wait("filled", lambda pod: pod["status"].get("reason") == "Evicted")
        nodes.wait_until_away(lost)
        self._wait("away", lambda pod: _ready(pod) == "False")
        self.pod_away = self.labs.pod(self.ids["away"])
        self.beside_it = {"node": nodes.ready(kept), "pod": self.labs.ready(self.ids["fine"])}
        said = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
        path = f"{self.labs.platform.namespace.collections['Pod']}/{self.labs.name(self.ids['evicted'])}"
        self.labs.platform.namespace.cluster.patch(f"{path}/status", {"status": said})
        self.labs.set(**_AT_ONCE, restart_causes=["node_away"])
        found = {"node_away", "pod_evicted", "stopped_answering"}
        eventually(lambda: found <= set(self.labs.check("--dry-run")["causes"]), HANGS_S, what=f"{found}")
        self.second = self.labs.check()
        self.labs.serve()
        self.third = self.labs.check()
        self.labs.platform.namespace.kubectl(
            "delete", "pod", self.labs.name(self.ids["ate"]), "--grace-period=0", "--force"
        )
        self.last = self.labs.check()
        rows = self.labs.platform.database.rows(
            "SELECT id FROM lab_instances WHERE restart_of = %s", self.ids["away"]
        )
        (self.started_again,) = (row["id"] for row in rows)
        self.ids["started again"] = self.started_again
        self.statuses_at_last = self._statuses()
        self.labs.stop(self.ids["fine"], self.started_again)

    def _statuses(self) -> dict[str, str]:
        return dict(zip(self.ids, self.labs.statuses([*self.ids.values()]), strict=True))

    def _wait(self, case: str, seen: Callable[[Manifest], bool]) -> None:
        """Wait until a lab is broken; if it never is, that is its own test's failure."""
        try:
            eventually(lambda: seen(self.labs.pod(self.ids[case])), HANGS_S, what=case)
        except AssertionError as exc:
            self.unbroken[case] = exc


def _container(pod: Manifest) -> Manifest:
    # A Pod whose node has not said anything yet has none.
    return dict((pod["status"].get("containerStatuses") or [{"restartCount": 0, "state": {}}])[0])


def _loops(pod: Manifest) -> bool:
    container = _container(pod)
    waiting = container["state"].get("waiting", {})
    return bool(container["restartCount"] >= 2 and waiting.get("reason") == "CrashLoopBackOff")


def _ready(pod: Manifest) -> str:
    return next((str(one["status"]) for one in pod["status"]["conditions"] if one["type"] == "Ready"), "")
