"""Changes of a lab's resources that meet a kill, one another, a stop or a duplicate: the end is one of them.

Broker, database, object store and cluster are the real ones; the container is `python -m jobs`, with one
observer more where it is to be killed.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator

import pytest

from dispatcher.broker import topology
from dispatcher.tasks import CREATE_LAB_POD
from jobs.cluster.client import Cluster
from jobs.cluster.lab_objects import LabObjects, PodChanged
from jobs.failures import Failure
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.containers.kill_matrix import FAULTY
from tests.support.factories import create_kwargs
from tests.support.labs.agreement import wait_until_all_agree
from tests.support.labs.own_labs import HANGS_S
from tests.support.labs.resizing import ResizedLab, without_limit_range
from tests.support.waiting import eventually, eventually_equal

#: Of a change that the node takes, and of one that it has no room for.
STEPS = ["begun", "noted", "asked", "in force", "committing", "settling", "acknowledged"]
REFUSED_STEPS = ["noted", "asked", "resize undone", "undone", "settling", "acknowledged"]
MI = 2**20


pytestmark = pytest.mark.timeout(3 * HANGS_S)


@pytest.fixture
def platform(own_platform: OwnPlatform) -> Iterator[OwnPlatform]:
    yield own_platform
    own_platform.containers.end()
    own_platform.set_lab_settings()
    own_platform.broker.empty()


@pytest.fixture(scope="module")
def running(own_platform: OwnPlatform) -> Iterator[ResizedLab]:
    """A lab that most tests share, since each leaves it settled."""
    # What a resize was counted for that came to nothing is free again only after minutes:
    # https://github.com/kubernetes/kubernetes/issues/127132
    no_limit = '{"spec": {"hard": {"requests.cpu": "10k", "limits.cpu": "10k"}}}'
    own_platform.namespace.kubectl("patch", "quota", "labs", "--type=merge", f"--patch={no_limit}")
    with without_limit_range(own_platform):
        yield ResizedLab.start(own_platform)


@pytest.fixture
def lab(running: ResizedLab, platform: OwnPlatform) -> ResizedLab:
    """The shared lab, of the default size."""
    running.resize(cpu="500m", memory="512Mi")
    assert running.settled()["limits"] == {"cpu": "500m", "memory": "512Mi"}
    return running


def wait_settled(lab: ResizedLab, **limits: str) -> None:
    settled = {"status": "RUNNING", "cgroup agrees": True, "pending": [], "note": None, "restarts": 0}

    def found() -> dict[str, object]:
        seen = lab.settled()
        del seen["requests"]
        return seen

    eventually_equal(found, settled | {"limits": {"cpu": "500m", "memory": "512Mi"} | limits}, HANGS_S)


def kill_at(lab: ResizedLab, step: str) -> None:
    """Let a container take the next message, and end with SIGKILL at a step."""
    process = lab.platform.containers.start(
        queue=topology.QUEUE_HIGH, module=FAULTY, TEST_FAULT=f"kill:{step}"
    )
    assert process.wait(HANGS_S) == -9, process.log.read_text()[-3000:]
    if step != "acknowledged":
        broker = lab.platform.broker
        eventually(
            lambda: broker.depth(topology.QUEUE_HIGH) == 1, HANGS_S, what="the message in its queue again"
        )


@pytest.mark.parametrize("step", STEPS)
def test_a_container_that_is_killed_over_a_change_leaves_it_to_the_next(lab: ResizedLab, step: str) -> None:
    task_id = lab.publish(cpu="750m", memory="600Mi")
    kill_at(lab, step)
    if step != "acknowledged":
        lab.serve()
    wait_settled(lab, cpu="750m", memory="600Mi")
    outcomes = [run["outcome"] for run in lab.runs(task_id)]
    last = {"acknowledged": [], "settling": ["noop"], "committing": ["noop"]}.get(step, ["succeeded"])
    assert outcomes[1:] == last
    assert outcomes[0] == ("succeeded" if step in ("settling", "acknowledged") else "started")


@pytest.mark.parametrize("step", REFUSED_STEPS)
def test_a_container_that_is_killed_over_a_refusal_leaves_nothing_pending(lab: ResizedLab, step: str) -> None:
    lab.let_grow(cpu_request_ratio=1)
    task_id = lab.publish(cpu=f"{lab.node_cpu + 100}m", memory="1Gi")
    kill_at(lab, step)
    if step != "acknowledged":
        lab.serve()
    wait_settled(lab)
    last = lab.runs(task_id)[-1]
    assert (last["outcome"], last["details"]["cause"]) == ("failed", Failure.RESIZE_INFEASIBLE.cause)


def test_containers_that_die_at_a_change_again_and_again_leave_nothing_pending(
    platform: OwnPlatform, lab: ResizedLab
) -> None:
    task_id = lab.publish(cpu=f"{lab.node_cpu + 100}m")
    lab.let_grow(cpu_request_ratio=1)
    for _ in range(topology.DELIVERY_LIMIT):
        kill_at(lab, "asked")
    process = platform.containers.start(queue=topology.QUEUE_HIGH, module=FAULTY, TEST_FAULT="kill:asked")
    assert process.wait(HANGS_S) == -9
    assert "Infeasible" in eventually(lambda: " ".join(lab.pending), HANGS_S, what="a pending resize")
    eventually(
        lambda: platform.broker.depth(topology.QUEUE_LOW) == 1, HANGS_S, what="the copy for a last container"
    )
    code, _ = platform.containers.run(queue=topology.QUEUE_LOW)
    assert code == 0
    wait_settled(lab)
    assert lab.runs(task_id)[-1]["details"]["cause"] == Failure.CONTAINER_CRASHED.cause


@pytest.mark.usefixtures("whole_node")
def test_a_change_waits_for_another_that_is_under_way(platform: OwnPlatform, lab: ResizedLab) -> None:
    # Both are there before the first of them has anything to wait for.
    containers = [platform.containers.start(queue=topology.QUEUE_HIGH, CLAIM_WAIT_S=60) for _ in range(2)]
    eventually(
        lambda: platform.broker.consumers(topology.QUEUE_HIGH) == 2, HANGS_S, what="two containers wait"
    )
    lab.let_grow(cpu_request_ratio=0.99, resize_timeout_s=10)
    first = lab.publish(cpu=f"{lab.node_cpu}m")
    eventually(lambda: lab.note, HANGS_S, what="the note of the first")
    platform.set_lab_settings()
    second = lab.publish(memory="700Mi")
    assert [container.wait(HANGS_S) for container in containers] == [0, 0]
    assert sum("resize_waits" in container.actions() for container in containers) == 1
    assert lab.runs(first)[-1]["details"]["cause"] == Failure.RESIZE_DEFERRED.cause
    assert lab.runs(second)[-1]["outcome"] == "succeeded"
    wait_settled(lab, memory="700Mi")


def test_a_change_whose_container_died_is_taken_over_as_if_it_never_was(
    platform: OwnPlatform, lab: ResizedLab
) -> None:
    platform.set_lab_settings(resize_timeout_s=10)
    first = lab.publish(cpu="750m")
    kill_at(lab, "asked")
    message = platform.broker.take(topology.QUEUE_HIGH)
    second = lab.publish(memory="700Mi")
    lab.serve()
    wait_settled(lab, memory="700Mi")
    assert lab.runs(second)[-1]["details"]["result"]["before"] == {"cpu": "500m", "memory": "512Mi"}
    platform.broker.publish(topology.QUEUE_HIGH, message.body, headers=message.headers)
    lab.serve()
    assert lab.runs(first)[-1]["outcome"] == "succeeded"
    wait_settled(lab, cpu="750m", memory="700Mi")


def test_many_changes_at_once_end_with_one_of_them_and_never_a_mix(lab: ResizedLab) -> None:
    sizes = [("600m", "600Mi"), ("700m", "700Mi"), ("800m", "800Mi")]
    tasks = [lab.publish(cpu=cpu, memory=memory) for cpu, memory in sizes]
    containers = [lab.platform.containers.start(queue=topology.QUEUE_HIGH) for _ in sizes]
    assert [container.wait(HANGS_S) for container in containers] == [0, 0, 0]
    limits = lab.settled()["limits"]
    assert (limits["cpu"], limits["memory"]) in sizes
    wait_settled(lab, **limits)
    assert {lab.runs(task)[-1]["outcome"] for task in tasks} <= {"succeeded", "noop"}


def test_a_duplicate_changes_nothing_even_after_a_later_change(lab: ResizedLab) -> None:
    task_id = lab.publish(cpu="750m")
    lab.serve()
    assert lab.resize(cpu="600m")["outcome"] == "succeeded"
    assert lab.publish(cpu="750m", id=task_id) == task_id
    lab.serve()
    assert [run["outcome"] for run in lab.runs(task_id)] == ["succeeded", "noop"]
    wait_settled(lab, cpu="600m")


def test_what_a_lab_has_already_is_not_asked_for(lab: ResizedLab) -> None:
    version = lab.pod["metadata"]["resourceVersion"]
    run = lab.resize(cpu="0.5", memory="524288Ki")
    assert run["outcome"] == "noop"
    assert run["details"]["result"]["after"] == {"cpu": "0.5", "memory": "524288Ki"}
    assert lab.pod["metadata"]["resourceVersion"] == version


@pytest.mark.usefixtures("whole_node")
def test_a_change_that_is_cancelled_while_it_waits_is_taken_back(
    platform: OwnPlatform, lab: ResizedLab
) -> None:
    lab.let_grow(cpu_request_ratio=0.99, resize_timeout_s=100)
    task_id = lab.publish(cpu=f"{lab.node_cpu}m")
    container = platform.containers.start(queue=topology.QUEUE_HIGH)
    eventually(lambda: lab.pending, HANGS_S, what="a pending resize")
    platform.database.rows("INSERT INTO task_cancellations (task_id) VALUES (%s)", task_id)
    assert container.wait(HANGS_S) == 0
    wait_settled(lab)
    assert lab.runs(task_id)[-1]["outcome"] == "revoked"


def test_a_duplicate_of_the_create_leaves_a_lab_as_large_as_it_is(lab: ResizedLab) -> None:
    lab.resize(cpu="750m")
    uid = lab.pod["metadata"]["uid"]
    platform = lab.platform
    kwargs = create_kwargs(lab_instance_id=lab.lab, docker_image=os.environ["LAB_IMAGE"])
    platform.broker.publish_task(name=CREATE_LAB_POD, kwargs=kwargs)
    platform.containers.run(queue=topology.QUEUE_NORMAL)
    wait_settled(lab, cpu="750m")
    # As if the commit that made it RUNNING had been lost: the Pod is adopted as it is.
    platform.database.rows("UPDATE lab_instances SET status = 'PENDING' WHERE id = %s", lab.lab)
    task_id = platform.broker.publish_task(name=CREATE_LAB_POD, kwargs=kwargs)
    platform.containers.run(queue=topology.QUEUE_NORMAL)
    assert lab.runs(task_id)[-1]["outcome"] == "succeeded"
    assert lab.pod["metadata"]["uid"] == uid
    wait_settled(lab, cpu="750m")


@pytest.mark.usefixtures("whole_node")
def test_a_lab_that_is_stopped_while_it_changes_is_stopped(platform: OwnPlatform) -> None:
    lab = ResizedLab.start(platform)
    lab.let_grow(cpu_request_ratio=0.99, resize_timeout_s=100)
    task_id = lab.publish(cpu=f"{lab.node_cpu}m")
    container = platform.containers.start(queue=topology.QUEUE_HIGH)
    eventually(lambda: lab.pending, HANGS_S, what="a pending resize")
    lab.stop()
    assert container.wait(HANGS_S) == 0
    run = lab.runs(task_id)[-1]
    assert (run["outcome"], run["details"]["result"]["why"]) == ("noop", "it was stopped")
    assert lab.status == "STOPPED"
    late = lab.resize(cpu="1")
    assert (late["outcome"], late["details"]["result"]["why"]) == ("noop", "it does not run")
    wait_until_all_agree(platform)


@pytest.mark.parametrize("subresource", ["", "resize"])
@pytest.mark.parametrize(
    "changed", [{"uid": str(uuid.uuid4())}, {"resourceVersion": "1"}], ids=["uid", "version"]
)
def test_nothing_is_written_to_another_pod_than_the_one_that_was_read(
    platform: OwnPlatform, lab: ResizedLab, subresource: str, changed: dict[str, str]
) -> None:
    objects = LabObjects(Cluster(platform.namespace.access), platform.namespace.name)
    before = lab.pod
    seen = before | {"metadata": before["metadata"] | changed}
    change = {"spec": {"containers": [{"name": "lab", "resources": {"limits": {"cpu": "1"}}}]}}
    with pytest.raises(PodChanged):
        objects.change_pod(seen, change if subresource else {}, subresource=subresource)
    assert lab.pod["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


def test_the_note_says_what_was_and_what_is_to_be(platform: OwnPlatform, lab: ResizedLab) -> None:
    task_id = lab.publish(cpu="750m")
    kill_at(lab, "asked")
    note = json.loads(lab.note or "")
    assert note == {
        "task": task_id,
        "before": {
            "limits": {"cpu": "500m", "memory": "512Mi"},
            "requests": {"cpu": "25m", "memory": str(128 * MI)},
        },
        "to": {
            "limits": {"cpu": "750m", "memory": "512Mi"},
            "requests": {"cpu": "37m", "memory": str(128 * MI)},
        },
    }
    lab.serve()
    wait_settled(lab, cpu="750m")
