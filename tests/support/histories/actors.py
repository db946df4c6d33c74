"""Labs, containers and a cluster in this process, whose every move a history decides.

The handlers are the real ones, on a real PostgreSQL; broker and cluster are simulated. Each container is a
coroutine that pauses before each request, each transaction and at each of its steps, so that any two
containers can meet anywhere, and each can die there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from greenlet import getcurrent, greenlet

from dispatcher.message.envelope import TaskMessage
from dispatcher.settings import BrokerSettings
from dispatcher.tasks import CLEANUP_TIMEOUT_LABS, CREATE_LAB_POD, DELETE_LAB_POD
from jobs.cluster.client import Manifest
from jobs.cluster.lab_objects import LabObjects
from jobs.config.environment import JobSettings, RetrySettings
from jobs.config.naming import lab_labels, lab_object_name
from jobs.container.consumer import Delivery, Settlement
from jobs.container.run_task import run_task
from jobs.handlers.context import Connections
from tests.support.broker.simulated_broker import Message, SimulatedBroker
from tests.support.cluster.simulated_cluster import PODS, Clock, SimulatedCluster, copy, is_live, is_ready
from tests.support.factories import create_kwargs, make_task, store_settings
from tests.support.histories.bench import SLOTS, Bench, Store

#: A lab of somebody else, which nothing may touch.
FOREIGN = 2**40
GOOD = "registry.gitlab.com/autolabs/labs/demo:1.0.0"
#: Another name of the objects; the same names under another hash; an image that does not exist.
OTHER = "registry.gitlab.com/autolabs/labs/other:1.0.0"
NEWER = "registry.gitlab.com/autolabs/labs/demo:2.0.0"
BROKEN = "registry.gitlab.com/autolabs/labs/demo:broken"

CLEANUP = CLEANUP_TIMEOUT_LABS.rpartition(".")[2]
_FORWARD = {
    "PENDING": {"RUNNING", "FAILED", "STOPPED"},
    "RUNNING": {"STOPPED"},
    "FAILED": {"STOPPED"},
    "STOPPED": set[str](),
}


class Violation(AssertionError):
    """Raised when an invariant does not hold."""


class Killed(BaseException):
    """What a container dies of; nothing in it may catch this."""


@dataclass
class LabView:
    """What a history remembers of a lab."""

    status: str = "PENDING"
    stop_requested: bool = False
    pod_name: str | None = None
    images: set[str] = field(default_factory=set)
    #: Somebody took its Pod away: what was Ready may be gone.
    meddled: bool = False
    #: Its student was told of an end that has not come yet.
    extended: bool = False


class Actor:
    """One container with its message."""

    def __init__(self, world: World, slot: int, message: Message) -> None:
        self.message, self.slot = message, slot
        self.task = _task_of(message)
        self.lab = int(self.task.kwargs.get("lab_instance_id", 0)) if self.task else 0
        self.name = self.task.name.rpartition(".")[2] if self.task else "poison"
        #: The steps that it reached, and where it waits.
        self.steps: list[str] = []
        self.at = ""
        #: Its message was given to another meanwhile; what it settles counts no more.
        self.lost_channel = False
        self.done = False
        self._world = world
        self._greenlet = greenlet(self._run)

    def resume(self) -> None:
        self._greenlet.switch()

    def kill(self) -> None:
        self._greenlet.throw(Killed)

    @property
    def is_current(self) -> bool:
        return getcurrent() is self._greenlet

    def _run(self) -> None:
        world, message = self._world, self.message
        delivery = Delivery(
            message.body, message.properties, message.routing_key, message.redelivered, self.slot
        )
        try:
            verdict = run_task(world.connections(self.slot, message.queue), delivery, {})
            world.pause("settling")
            if self.lost_channel:
                return
            if verdict is Settlement.NACK:
                world.broker.return_message(message)
                return
            world.check_settled(self)
        except Killed:
            if not self.lost_channel:
                world.broker.return_message(message)
        finally:
            self.done = True
            world.ended(self)

    def __str__(self) -> str:
        return f"{self.name} of lab {self.lab} in {self.slot}, at {self.at}"


def _task_of(message: Message) -> TaskMessage | None:
    return message.task() if "task" in (message.properties.headers or {}) else None


class World:
    """One history: its labs, queues, cluster and containers, and the invariants on all of them."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.clock = Clock()
        self.cluster = SimulatedCluster(self.pause, self.clock, self._on_delete)
        self.broker = SimulatedBroker()
        self.labs: dict[int, LabView] = {}
        self.actors: list[Actor] = []
        self.store = Store(dict(bench.templates))
        #: "away" or "answer lost", for the next transaction.
        self.database_fault = ""
        #: How often each kind of race or trouble occurred, and how many operations there were.
        self.seen: Counter[str] = Counter()
        self._ends: dict[str, str] = {}
        #: What happened, for the report of a violation.
        self.played: list[str] = []
        #: The database changed since the last look, and the version of the cluster at that.
        self.changed, self._looked_at = True, -1
        self._scheduler = getcurrent()
        #: A cleanup was asked for, and may leave deletes in the outbox.
        self.cleaned = False
        #: It is a cleanup that goes on.
        self._moved_cleanup = False
        bench.rows("DELETE FROM task_outbox")
        self._foreign = self._add_foreign()
        for slot in bench.stores:
            slot.world = self

    # Containers.

    def pause(self, where: str) -> None:
        """Let the history go on elsewhere; called in a container's code."""
        if actor := self._current():
            actor.at = where
            self._scheduler.switch()

    def reached(self, step: str) -> None:
        if actor := self._current():
            actor.steps.append(step)
            self.played.append(f"    {actor.name} {actor.slot} reached {step}")
            self.pause(step)

    def _on_delete(self, pod: Manifest) -> None:
        actor = self._current()
        if actor and "rendered" in actor.steps and "applied" not in actor.steps and is_live(pod):
            self.seen["a create replaces the Pod of another"] += 1

    def _current(self) -> Actor | None:
        return next((actor for actor in self.actors if actor.is_current), None)

    def connections(self, slot: int, queue: str) -> Connections:
        settings = JobSettings(
            broker=BrokerSettings("amqp://nowhere"),
            database_url=self.bench.database_url,
            store=store_settings(),
            retry=RetrySettings(max_retries=1, jitter=False),
            queue=queue,
            claim_wait_s=1,
            ready_port=1,
            namespace="labs",
            kubeconfig_object="",
            pod_name=f"pod-{slot}",
            job_name="job",
            log_level="INFO",
        )
        opened = Connections(settings)
        given = {
            "labs": self.bench.stores[slot],
            "store": self.store,
            "cluster": self.cluster,
            "lab_objects": LabObjects(self.cluster, "labs"),  # type: ignore[arg-type]  # the same interface
            "publisher": self.broker,
        }
        vars(opened).update(given)
        return opened

    def deliver(self, message: Message) -> Actor:
        """Start a container with a waiting message."""
        self.broker.ready.remove(message)
        free = {*range(SLOTS)} - {actor.slot for actor in self.actors}
        actor = Actor(self, min(free), message)
        self._note_meeting(actor)
        self.actors.append(actor)
        self.resume(actor)
        return actor

    def _note_meeting(self, actor: Actor) -> None:
        if actor.message.redelivered:
            self.seen["a message is delivered again"] += 1
        if "x-last-death-reason" in (actor.message.properties.headers or {}):
            self.seen["a container fails what the broker gave up"] += 1
        if actor.lab not in self.labs:
            return
        view = self.labs[actor.lab]
        others = {other.name for other in self.actors if other.lab == actor.lab}
        for other in others:
            self.seen[f"{actor.name} while {other}"] += 1
        if actor.name == "create_lab_pod" and (view.stop_requested or view.status in ("STOPPED", "FAILED")):
            self.seen["create after the lab's end"] += 1

    def resume(self, actor: Actor) -> None:
        self._moved_cleanup = actor.name == CLEANUP
        actor.resume()
        self.check()
        self._moved_cleanup = False

    def kill(self, actor: Actor) -> None:
        if actor.at == "relaying":
            self.seen["killed before it relays"] += 1
        committed = {"running", "stopped"} & {*actor.steps} or actor.at == "settling"
        self.seen["killed after the commit" if committed else "killed before the commit"] += 1
        actor.kill()
        self.check()

    def lose_channel(self, actor: Actor) -> None:
        """Give its message to another, while the container goes on."""
        self.seen["a container without its message goes on"] += 1
        actor.lost_channel = True
        self.broker.return_message(actor.message)

    def ended(self, actor: Actor) -> None:
        self.actors.remove(actor)
        self.played.append(f"    {actor.name} {actor.slot} ended")
        if "committing" in actor.steps and not {"running", "stopped"} & {*actor.steps}:
            self.seen[f"{actor.name} loses at its commit"] += 1

    # Requests of a backend.

    def add_lab(self, image: str) -> int:
        ((lab,),) = self.bench.rows(
            "INSERT INTO lab_instances (lab_id, student_id) VALUES (7, 42) RETURNING id"
        )
        self.labs[lab] = LabView()
        self.create(lab, image)
        return int(lab)

    def create(self, lab: int, image: str) -> None:
        self.labs[lab].images.add(image)
        kwargs = create_kwargs(lab_instance_id=lab, docker_image=image)
        self.broker.request(make_task(name=CREATE_LAB_POD, kwargs=kwargs))

    def delete(self, lab: int) -> None:
        self.broker.request(make_task(name=DELETE_LAB_POD, kwargs={"lab_instance_id": lab}))

    def clean_up(self) -> None:
        self.cleaned = True
        self.broker.request(make_task(name=CLEANUP_TIMEOUT_LABS, kwargs={}))

    def cancel(self, message: Message) -> None:
        if task := _task_of(message):
            self.bench.results.cancel(task.id)

    # Invariants.

    def check(self) -> None:
        """Check what must hold at every moment."""
        if self.changed:
            self.changed = False
            self._check_labs()
        if self.cluster.version != self._looked_at:
            self._looked_at = self.cluster.version
            self._check_objects()

    def _check_objects(self) -> None:
        for lab, view in self.labs.items():
            names = [item["metadata"]["name"] for item in self.cluster.of_lab(lab) if item["kind"] == "Pod"]
            if {*names} - {lab_object_name(lab, image) for image in view.images}:
                raise Violation(f"lab {lab} has {names}")
        if self._foreign_objects() != self._foreign:
            raise Violation("objects of another lab were touched")

    def _check_labs(self) -> None:
        statement = "SELECT id, status, stop_requested_at IS NOT NULL, k8s_pod_name FROM lab_instances"
        for lab, status, stop, pod_name in self.bench.rows(f"{statement} WHERE id = ANY(%s)", [*self.labs]):
            self._check_lab(lab, self.labs[lab], LabView(status, stop, pod_name))

    def _check_lab(self, lab: int, was: LabView, now: LabView) -> None:
        if now.status != was.status and now.status not in _FORWARD[was.status]:
            raise Violation(f"lab {lab} went from {was.status} to {now.status}")
        if was.stop_requested and not now.stop_requested:
            raise Violation(f"the stop of lab {lab} was forgotten")
        if now.stop_requested and not was.stop_requested and was.extended and self._moved_cleanup:
            raise Violation(f"lab {lab} was ended by a cleanup, although it was extended")
        if now.status == "RUNNING" != was.status:
            if was.stop_requested:
                raise Violation(f"lab {lab} became RUNNING after its stop was requested")
            self._check_whole(lab, was, now.pod_name, "RUNNING at its commit")
        was.status, was.stop_requested, was.pod_name = now.status, now.stop_requested, now.pod_name

    def _check_whole(self, lab: int, view: LabView, pod_name: str | None, when: str) -> None:
        """Check that a lab has a Ready Pod and what belongs to it, unless others took that away."""
        of_pod = [item for item in self.cluster.of_lab(lab) if item["metadata"]["name"] == pod_name]
        kinds = sorted(item["kind"] for item in of_pod)
        ready = all(is_ready(item) for item in of_pod if item["kind"] == "Pod")
        if view.meddled or (ready and kinds == ["NetworkPolicy", "Pod", "Service"]):
            return
        raise Violation(f"lab {lab} is {when}, with {self._objects(lab)}")

    def _objects(self, lab: int) -> list[str]:
        return [
            f"{item['kind']}/{item['metadata']['name']} {item.get('status', '')}"
            for item in self.cluster.of_lab(lab)
        ]

    def check_settled(self, actor: Actor) -> None:
        """Check that a message goes only when what became of it is written somewhere."""
        if actor.task is None:
            if actor.message.body not in [dead.body for dead in self.broker.dead]:
                raise Violation("what is no task was acknowledged, but is not in the dead-letter queue")
            return
        statement = "SELECT run_id, outcome FROM task_ledger WHERE task_id = %s AND finished_at IS NOT NULL"
        ends = dict(self.bench.rows(statement, actor.task.id))
        self._check_ends(ends)
        kept = [*self.broker.dead, *self.broker.delayed, *self.broker.ready]
        if not ends and actor.task.id not in [task.id for one in kept if (task := _task_of(one))]:
            raise Violation(f"task {actor} was acknowledged without a trace")

    def check_end(self) -> None:
        """Check what must hold once nothing is on its way any more."""
        self.changed = True
        self.check()
        for lab, view in self.labs.items():
            pods = [item for item in self.cluster.of_lab(lab) if item["kind"] == "Pod" and is_live(item)]
            if len(pods) > 1:
                raise Violation(f"lab {lab} has {len(pods)} Pods")
            if view.status == "PENDING":
                raise Violation(f"lab {lab} is still PENDING, stop requested: {view.stop_requested}")
            if view.stop_requested and view.status not in ("STOPPED", "FAILED"):
                raise Violation(f"lab {lab} is {view.status}, though its stop was requested")
            if view.status != "RUNNING" and self.cluster.of_lab(lab):
                raise Violation(f"lab {lab} is {view.status} with {self._objects(lab)}")
            if view.status == "RUNNING":
                if {item["metadata"]["name"] for item in self.cluster.of_lab(lab)} - {view.pod_name}:
                    raise Violation(f"lab {lab} is RUNNING as {view.pod_name} with {self._objects(lab)}")
                self._check_whole(lab, view, view.pod_name, "RUNNING at the end")
        statement = "SELECT run_id, outcome FROM task_ledger WHERE lab_instance_id = ANY(%s)"
        runs = dict(self.bench.rows(statement, [*self.labs]))
        self._check_ends(runs)
        self.seen.update(f"ended: {outcome}" for outcome in runs.values())

    def _check_ends(self, ends: dict[str, str]) -> None:
        """Check that a run ends once: what its row said stays."""
        changed = {run: was for run, was in self._ends.items() if run in ends and ends[run] != was}
        if changed:
            raise Violation(f"runs that ended otherwise before: {changed}")
        self._ends |= ends

    # A lab of somebody else.

    def _add_foreign(self) -> list[Manifest]:
        name = lab_object_name(FOREIGN, GOOD)
        for kind, path in (("Pod", PODS), ("Service", PODS.replace("pods", "services"))):
            metadata = {"name": name, "labels": lab_labels(FOREIGN, 1, 2)}
            self.cluster.create(path, {"kind": kind, "metadata": metadata, "spec": {"containers": []}})
        return self._foreign_objects()

    def _foreign_objects(self) -> list[Manifest]:
        return [copy(item) for item in self.cluster.of_lab(FOREIGN)]
