"""What can happen next in a history, how likely, and how it all comes to rest at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pika

from dispatcher import lab_time
from dispatcher.broker import topology
from dispatcher.errors import NotExtended
from dispatcher.outbox.relay import relay_once
from tests.support.broker.simulated_broker import Message
from tests.support.cluster.simulated_cluster import (
    API_AWAY,
    EVICTED,
    NO_IMAGE,
    QUOTA,
    RUNNING,
    is_going,
    is_live,
    is_ready,
)
from tests.support.histories.actors import BROKEN, CLEANUP, GOOD, NEWER, OTHER, Actor, Violation, World

#: Labs and requests of one history at most.
LABS, REQUESTS = 2, 7
#: Rounds within which everything must have come to rest.
_ROUNDS = 400


@dataclass(frozen=True)
class Move:
    """One thing that may happen now; `weight` is its share."""

    weight: int
    name: str
    act: Callable[[], object]


def play(world: World, choices: bytes) -> None:
    """Make the moves that the bytes choose."""
    requests = Requests(world)
    for choice in choices:
        moves = [*requests.moves(), *_of_broker(world), *_of_containers(world), *_of_cluster(world)]
        moves += _troubles(world)
        point = choice * sum(move.weight for move in moves) // 256
        for move in moves:
            if point < move.weight:
                world.played.append(move.name)
                world.seen.update([f"move: {move.name.partition(' ')[0]}", "moves"])
                move.act()
                break
            point -= move.weight


class Requests:
    """What backends and operators ask for, within the limits of one history."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._left = REQUESTS

    def moves(self) -> Iterator[Move]:
        world = self._world
        if self._left and len(world.labs) < LABS:
            for weight, image in ((12, GOOD), (2, OTHER), (1, BROKEN)):
                yield self._move(weight, f"lab {image[-10:]}", partial(world.add_lab, image))
        if not self._left:
            return
        for lab, view in world.labs.items():
            yield self._move(5, f"delete {lab}", partial(world.delete, lab))
            for weight, image in ((2, GOOD), (1, OTHER), (1, NEWER), (1, BROKEN)):
                yield self._move(
                    weight,
                    f"create {lab} {image[-10:]}",
                    partial(world.create, lab, image),
                )
            if view.status == "RUNNING" and not view.stop_requested:
                yield self._move(20, f"expire {lab}", partial(self._expire, lab))
            if view.status == "RUNNING":
                # The moments that matter are short.
                racing = any(actor.name == CLEANUP for actor in world.actors)
                weight = 60 if racing else 25 if view.stop_requested else 3
                yield Move(weight, f"extend {lab}", partial(extend, world, lab))
            if view.stop_requested and view.status in ("PENDING", "RUNNING"):
                yield self._move(2, f"overdue {lab}", partial(make_overdue, world, lab))
        messages = [*world.broker.ready, *(actor.message for actor in world.actors)]
        if messages:
            yield self._move(2, "cancel", lambda: self._cancel(messages[-1]))
        yield self._move(1, "poison", self._poison)

    def _move(self, weight: int, name: str, act: Callable[[], object]) -> Move:
        def request() -> None:
            self._left -= 1
            act()

        return Move(weight, name, request)

    def _expire(self, lab: int) -> None:
        self._world.seen["a lab is over its time"] += 1
        self._world.labs[lab].extended = False
        statement = "UPDATE lab_instances SET expires_at = now() - interval '1 minute' WHERE id = %s"
        self._world.bench.rows(statement, lab)
        self._world.clean_up()

    def _cancel(self, message: Message) -> None:
        begun = any(actor.message is message for actor in self._world.actors)
        self._world.seen["cancelled while it runs" if begun else "cancelled while it waits"] += 1
        self._world.cancel(message)

    def _poison(self) -> None:
        message = Message(b"\x80\x04poison", pika.BasicProperties(), "lab.create", topology.QUEUE_NORMAL)
        self._world.seen["poison"] += 1
        self._world.broker.ready.append(message)


def extend(world: World, lab: int) -> None:
    """Ask for half an hour more, as a student does."""
    if any(actor.name == CLEANUP for actor in world.actors):
        world.seen["an extension while a cleanup is at it"] += 1
    try:
        with world.bench.engine.begin() as connection:
            lab_time.extend(connection, lab, 30)
    except NotExtended:
        world.seen["an extension that is refused"] += 1
    else:
        world.seen["a lab is extended"] += 1
        world.labs[lab].extended = True


def sweep_outbox(world: World) -> None:
    """Do what the CronJob of the outbox does each minute."""
    world.bench.rows("UPDATE task_outbox SET next_attempt_at = now()")
    relay_once(world.bench.engine, world.broker)


def make_overdue(world: World, lab: int) -> None:
    """Let a stop wait for so long that the next cleanup asks for it again."""
    world.seen["a stop is asked for again"] += 1
    statement = "UPDATE lab_instances SET stop_requested_at = now() - interval '16 minutes' WHERE id = %s"
    world.bench.rows(statement, lab)
    world.clean_up()


def _of_broker(world: World) -> Iterator[Move]:
    broker = world.broker
    if len(world.actors) < len(world.bench.stores):
        for message in broker.ready[:3]:
            # While it waits, the labs that it is to end may go.
            weight = 24 if message.routing_key == "lab.cleanup" else 8
            yield Move(weight, "deliver", partial(world.deliver, message))
    for message in broker.ready[:2]:
        if message.properties.headers:
            yield Move(1, "duplicate", partial(broker.duplicate, message))
        # Of a copy that is given up as well only `autolabs verify` tells.
        if message.returns < topology.DELIVERY_LIMIT and not broker.is_copy(message):
            yield Move(1, "worn", partial(_wear_out, message))
    if broker.delayed:
        yield Move(4, "release", broker.release)
    if world.cleaned:
        yield Move(1, "sweep", partial(sweep_outbox, world))


def _wear_out(message: Message) -> None:
    """As if containers had died over it until one more is one too many."""
    message.returns, message.redelivered = topology.DELIVERY_LIMIT, True


def _of_containers(world: World) -> Iterator[Move]:
    for actor in world.actors:
        who = str(actor)
        yield Move(10, f"step {who}", partial(world.resume, actor))
        yield Move(9, f"go on {who}", partial(_run, world, actor, 5))
        yield Move(6, f"finish {who}", partial(_run, world, actor, 60))
        if not actor.lost_channel:
            # One that is killed as well would leave what only `autolabs verify` finds.
            late = {"relaying": 50, "running": 12, "stopped": 12, "settling": 12}.get(actor.at, 2)
            yield Move(late, f"kill {who}", partial(world.kill, actor))
            yield Move(1, f"lose {who}", partial(world.lose_channel, actor))


def _run(world: World, actor: Actor, points: int) -> None:
    """Let a container go on, until it waits for the cluster."""
    for _ in range(points):
        world.resume(actor)
        if actor.done or actor.at == "watch":
            return


def _of_cluster(world: World) -> Iterator[Move]:
    cluster = world.cluster
    for path, pod in [*cluster.objects.items()]:
        if pod["kind"] != "Pod" or pod["metadata"]["labels"]["lab_instance_id"] not in map(str, world.labs):
            continue
        if is_going(pod):
            yield Move(4, f"terminate {path}", partial(cluster.remove, path))
            if pod["status"].get("phase") != "Succeeded":
                status = {"phase": "Succeeded"}
                yield Move(2, f"end {path}", partial(cluster.set_status, path, status))
        elif is_live(pod):
            if not is_ready(pod):
                yield Move(10, f"kubelet {path}", partial(run_pod, world, path))
            yield Move(1, f"meddle {path}", partial(_meddle, world, path, evict=False))
            yield Move(1, f"evict {path}", partial(_meddle, world, path, evict=True))
    if cluster.garbage():
        yield Move(2, "garbage", cluster.collect_garbage)


def run_pod(world: World, path: str) -> None:
    """Do what the kubelet does with a new Pod."""
    (container,) = world.cluster.objects[path]["spec"]["containers"]
    world.cluster.set_status(path, NO_IMAGE if container["image"] == BROKEN else RUNNING)


def _meddle(world: World, path: str, *, evict: bool) -> None:
    view = world.labs[int(world.cluster.objects[path]["metadata"]["labels"]["lab_instance_id"])]
    world.seen["a Pod is evicted" if evict else "a Pod is removed by somebody"] += 1
    view.meddled = True
    if evict:
        world.cluster.set_status(path, EVICTED)
    else:
        world.cluster.remove(path)


def _troubles(world: World) -> Iterator[Move]:
    if not world.actors:
        return

    def api(kind: str, error: Exception, before: bool) -> None:
        world.seen[f"API: {kind}"] += 1
        world.cluster.next_error = (before, error)

    def database(fault: str) -> None:
        world.seen[f"database: {fault}"] += 1
        world.database_fault = fault

    def broker(fault: str) -> None:
        world.seen[f"publish: {fault}"] += 1
        world.broker.next_fault = fault

    yield Move(1, "API away", lambda: api("away", API_AWAY, True))
    yield Move(1, "API answer lost", lambda: api("answer lost", API_AWAY, False))
    yield Move(1, "quota", lambda: api("quota", QUOTA, True))
    yield Move(1, "database away", lambda: database("away"))
    yield Move(1, "database answer lost", lambda: database("answer lost"))
    yield Move(1, "publish lost", lambda: broker("lost"))
    yield Move(1, "publish unconfirmed", lambda: broker("confirm lost"))
    yield Move(1, "410", lambda: setattr(world.cluster, "next_watch_expired", True))
    yield Move(1, "template", lambda: _edit_template(world))
    yield Move(1, "time", lambda: world.clock.sleep(70))


def _edit_template(world: World) -> None:
    world.seen["the template changes"] += 1
    key = "manifests/lab-pod-template.yaml"
    world.store.objects[key] += b"# \n"
    edited = world.store.objects[key].replace(
        b"terminationGracePeriodSeconds: 5", b"terminationGracePeriodSeconds: 6"
    )
    world.store.objects[key] = edited


def come_to_rest(world: World) -> None:
    """Let all trouble end, and everything that waits be served."""
    world.cluster.next_error, world.database_fault = None, ""
    world.broker.next_fault = ""
    for _ in range(3):
        _settle(world)
        sweep_outbox(world)
        _settle(world)
        # What the CronJob of the cleanup does sooner or later.
        overdue = [
            lab
            for lab, view in world.labs.items()
            if view.stop_requested and view.status in ("PENDING", "RUNNING")
        ]
        if not overdue:
            return
        for lab in overdue:
            make_overdue(world, lab)


def _settle(world: World) -> None:
    for _ in range(_ROUNDS):
        for actor in [*world.actors]:
            _run(world, actor, 60)
        for path in world.cluster.pods():
            pod = world.cluster.objects[path]
            if is_going(pod):
                world.cluster.remove(path)
            elif (
                is_live(pod)
                and not is_ready(pod)
                and pod["metadata"]["labels"]["lab_instance_id"] in map(str, world.labs)
            ):
                run_pod(world, path)
        world.cluster.collect_garbage()
        if len(world.actors) < len(world.bench.stores) and world.broker.ready:
            world.deliver(world.broker.ready[0])
        elif not world.actors and world.broker.delayed:
            world.broker.release()
        elif not world.actors:
            return
    raise Violation(
        f"nothing comes to rest: {[*map(str, world.actors)]}, {len(world.broker.ready)} messages wait"
    )
