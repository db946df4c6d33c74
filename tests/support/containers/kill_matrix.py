"""One container ended at one step, what comes back of its message, and how all that ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from typing import Any

from dispatcher.broker import topology
from dispatcher.settings import BrokerSettings
from dispatcher.tasks import CREATE_LAB_POD, DELETE_LAB_POD
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.containers.container import Process
from tests.support.factories import create_kwargs
from tests.support.waiting import eventually

FAULTY = "tests.support.containers.faulty_job"
#: What runs in the main thread: a task that got there is not held up by SIGTERM any more.
MAIN_THREAD = ("settling", "acknowledged")
#: Seconds within which a message is back, however slow the machine is: where nobody tells the broker that a
#: connection is gone, it finds that out only by two heartbeats that are missing.
BACK_S = 2 * BrokerSettings("").heartbeat_s / 3
#: Seconds after which a wait is given up.
HANGS_S = 90.0


@dataclass
class Cell:
    """One row of the table that the matrix prints."""

    operation: str
    step: str
    fault: str
    exit_code: int
    #: Seconds from the fault until the message was in its queue again; None when it was settled.
    back_s: float | None
    end: str = "?"
    runs: str = ""
    seconds: float = 0.0

    def line(self) -> str:
        back = "settled" if self.back_s is None else f"{self.back_s:.2f} s"
        return (
            f"{self.operation:<7} {self.step:<22} {self.fault:<6} {self.exit_code:>5} {back:>9}"
            f"  {self.end:<9} {self.runs:<21} {self.seconds:>5.1f}"
        )


HEADER = f"{'task':<7} {'step':<22} {'fault':<6} {'exit':>5} {'back':>9}  {'lab':<9} {'runs':<21} {'s':>5}"


@dataclass
class Trials:
    """Labs on a module's own platform, and the cells that were tried so far."""

    platform: OwnPlatform = field(repr=False)
    image: str
    cells: list[Cell] = field(default_factory=list)
    #: Labs that were left RUNNING, with their pods' names: a delete takes one of these.
    running: list[int] = field(default_factory=list)

    def publish_create(self, lab: int, *, image: str | None = None) -> str:
        kwargs = create_kwargs(lab_instance_id=lab, docker_image=image or self.image)
        return self.platform.broker.publish_task(name=CREATE_LAB_POD, kwargs=kwargs)

    def publish_delete(self, lab: int) -> str:
        return self.platform.broker.publish_task(name=DELETE_LAB_POD, kwargs={"lab_instance_id": lab})

    def running_lab(self) -> int:
        """Return a lab that is RUNNING, one that an earlier test left or a new one."""
        if self.running:
            return self.running.pop()
        lab = self.platform.database.add_lab()
        self.publish_create(lab)
        self.serve(topology.QUEUE_NORMAL)
        if (status := self.status(lab)) != "RUNNING":
            raise AssertionError(f"lab {lab} is {status}")
        return lab

    def status(self, lab: int) -> str:
        return str(self.platform.database.lab(lab)["status"])

    def outcomes(self, task_id: str) -> list[str]:
        return [run["outcome"] for run in self.runs(task_id)]

    def runs(self, task_id: str) -> list[dict[str, Any]]:
        statement = "SELECT * FROM task_ledger WHERE task_id = %s ORDER BY id"
        return self.platform.database.rows(statement, task_id)

    def faulty(self, queue: str, fault: str, step: str, **environ: Any) -> Process:
        """Start a container that meets a fault at a step."""
        given = {"TEST_FAULT": f"{fault}:{step}", "CLAIM_WAIT_S": 20, **environ}
        return self.platform.containers.start(queue=queue, module=FAULTY, **given)

    def serve(self, queue: str, **environ: Any) -> Process:
        """Run a container without a fault and return it; it must find a message and settle it."""
        code, process = self.platform.containers.run(queue=queue, **environ)
        if code != 0 or "idle" in process.actions():
            raise AssertionError(f"container left with {code}: {process.actions()}")
        return process

    def finds_nothing(self, queue: str) -> bool:
        """Run a container, which waits a little for a message, and tell whether none came."""
        code, process = self.platform.containers.run(queue=queue, CLAIM_WAIT_S=0.5)
        return code == 0 and process.actions() == ["idle"]

    def end_at(self, operation: str, queue: str, fault: str, step: str) -> Cell:
        """End the container that serves the queue's only message, and wait until that is back, if it is."""
        process = self.faulty(queue, fault, step)
        code = process.wait()
        hit = [line for line in process.lines() if line.get("action") == "fault"]
        if len(hit) != 1:
            raise AssertionError(f"step {step!r} was not reached: {process.actions()}")
        settled = step == "acknowledged" or (fault != "kill" and code == 0)
        back_s = None
        if not settled:
            broker = self.platform.broker
            eventually(lambda: broker.depth(queue) == 1, HANGS_S, what=f"the message in {queue} again")
            back_s = (datetime.now(timezone.utc) - datetime.fromisoformat(hit[0]["ts"])).total_seconds()
        cell = Cell(operation, step, fault, code, back_s)
        self.cells.append(cell)
        return cell

    def clean(self) -> None:
        """Take away what a test left that failed: containers, messages, and labs on their way."""
        platform = self.platform
        platform.containers.end()
        messages = platform.broker.empty()
        unsettled = "status = 'PENDING' OR (status = 'RUNNING' AND stop_requested_at IS NOT NULL)"
        if not messages and not platform.database.rows(f"SELECT id FROM lab_instances WHERE {unsettled}"):
            return
        platform.database.rows("DELETE FROM lab_instances WHERE id <> ALL(%s)", self.running)
        for item in platform.namespace.objects():
            if int(item["metadata"]["labels"]["lab_instance_id"]) not in self.running:
                path = f"{platform.namespace.collections[item['kind']]}/{item['metadata']['name']}"
                platform.namespace.cluster.delete(path, uid=item["metadata"]["uid"], grace_s=0)

    @cached_property
    def cost_of_giving_back(self) -> int:
        """How many of the queue's deliveries a nack costs: none since RabbitMQ 4.3, before that one."""
        version = self.platform.broker.api.call("GET", "/overview")["rabbitmq_version"]
        return 0 if tuple(map(int, version.split(".")[:2])) >= (4, 3) else 1

    def deliveries_counted(self, queue: str) -> int:
        """Return how many failed deliveries the broker counts for the queue's next message, which stays."""
        channel = self.platform.broker.channel()
        try:
            method, properties, _ = channel.basic_get(queue)
            if method is None or properties is None:
                raise AssertionError(f"no message in {queue}")
            channel.basic_nack(method.delivery_tag, requeue=True)
            return int((properties.headers or {}).get("x-delivery-count", 0))
        finally:
            channel.connection.close()

    def table(self) -> str:
        return "\n".join([HEADER, *(cell.line() for cell in self.cells)])
