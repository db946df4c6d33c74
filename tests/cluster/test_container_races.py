"""Containers that meet: halted ones that go on late, two for one message, a stop against a start.

As in the kill matrix everything is real. A container is halted with SIGSTOP and loses its connection to
the broker, which gives its message to another; later it goes on where it was.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dispatcher.broker import topology
from dispatcher.message.envelope import encode
from dispatcher.tasks import CLEANUP_TIMEOUT_LABS
from jobs.config.manifests import POD_TEMPLATE
from jobs.config.naming import lab_object_name
from jobs.config.stored import DEFAULTS
from jobs.failures import Failure
from tests.support.broker.tcp_proxy import TcpProxy
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.containers.container import Process
from tests.support.containers.kill_matrix import HANGS_S, Trials
from tests.support.factories import create_kwargs, make_task
from tests.support.labs.agreement import wait_until_all_agree
from tests.support.waiting import eventually, eventually_equal

#: Seconds; a broker gives a message up only after seven containers.
pytestmark = pytest.mark.timeout(300)

HIGH, NORMAL, LOW = topology.QUEUE_HIGH, topology.QUEUE_NORMAL, topology.QUEUE_LOW


@pytest.fixture(scope="module")
def trials(own_platform: OwnPlatform) -> Trials:
    return Trials(own_platform, os.environ["LAB_IMAGE"])


@pytest.fixture(autouse=True)
def nothing_is_left(trials: Trials) -> Iterator[None]:
    yield
    trials.clean()


@pytest.fixture
def lab(trials: Trials) -> int:
    """A PENDING lab."""
    return trials.platform.database.add_lab()


def is_halted(process: Process) -> bool:
    stat = Path(f"/proc/{process.popen.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


@contextmanager
def halted_at(trials: Trials, queue: str, step: str) -> Iterator[Callable[[], list[str]]]:
    """Halt a container at a step until its message is back; the value lets it go on to its end."""
    broker = trials.platform.broker
    with TcpProxy.to(broker.url) as cable:
        process = trials.faulty(queue, "stop", step, AMQP_URL=cable.through(broker.url))
        eventually(lambda: is_halted(process), HANGS_S, what=f"container is halted at {step}")
        cable.cut()
        eventually_equal(lambda: broker.depth(queue), 1, HANGS_S)

        def go_on() -> list[str]:
            process.popen.send_signal(signal.SIGCONT)
            assert process.wait() in (0, 75)
            return process.actions()

        try:
            yield go_on
        finally:
            process.popen.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("step", ["begun", "Pod created", "committing", "running"])
def test_a_create_that_goes_on_after_another_did_its_work_changes_nothing(
    trials: Trials, lab: int, step: str
) -> None:
    task_id = trials.publish_create(lab)
    with halted_at(trials, NORMAL, step) as go_on:
        trials.serve(NORMAL)
        before = trials.platform.namespace.objects_of(lab)
        assert trials.status(lab) == "RUNNING"
        assert "channel_lost" in go_on()
    after = trials.platform.namespace.objects_of(lab)
    assert [item["metadata"]["uid"] for item in after] == [item["metadata"]["uid"] for item in before]
    assert sorted(trials.outcomes(task_id)) == ["noop", "succeeded"]
    wait_until_all_agree(trials.platform)


@pytest.mark.parametrize("step", ["begun", "rendered", "Pod created", "ready", "committing"])
def test_a_create_that_goes_on_after_its_lab_was_stopped_leaves_nothing(
    trials: Trials, lab: int, step: str
) -> None:
    task_id = trials.publish_create(lab)
    with halted_at(trials, NORMAL, step) as go_on:
        trials.publish_delete(lab)
        trials.serve(HIGH)
        trials.serve(NORMAL)  # its redelivery, late after the delete
        assert trials.status(lab) == "STOPPED"
        assert trials.platform.namespace.names_of(lab) == []
        go_on()
    assert trials.outcomes(task_id) == ["noop", "noop"]
    assert trials.status(lab) == "STOPPED"
    wait_until_all_agree(trials.platform)


@pytest.mark.parametrize("step", ["begun", "stop_requested", "Pod deleted", "committing"])
def test_a_delete_that_goes_on_after_another_did_its_work_changes_nothing(trials: Trials, step: str) -> None:
    lab = trials.running_lab()
    task_id = trials.publish_delete(lab)
    with halted_at(trials, HIGH, step) as go_on:
        trials.serve(HIGH)
        assert trials.status(lab) == "STOPPED"
        go_on()
    assert "succeeded" in trials.outcomes(task_id)
    wait_until_all_agree(trials.platform)


def run_together(trials: Trials, queue: str, step: str, folder: Path, count: int = 2) -> list[Process]:
    """Run containers that wait for each other at a step, then go on at the same moment."""
    meeting = {"TEST_MEET_IN": folder, "TEST_MEET": count}
    together = [trials.faulty(queue, "meet", step, **meeting) for _ in range(count)]
    assert [process.wait() for process in together] == [0] * count
    return together


@pytest.mark.parametrize("step", ["claimed", "rendered", "applied", "committing"])
def test_one_message_in_two_containers_gives_one_lab(
    trials: Trials, lab: int, tmp_path: Path, step: str
) -> None:
    task = make_task(kwargs=create_kwargs(lab_instance_id=lab, docker_image=trials.image))
    body, sent = encode(task)
    sent.pop("delivery_mode")
    for _ in range(2):
        trials.platform.broker.publish(NORMAL, body, **sent)
    run_together(trials, NORMAL, step, tmp_path)
    assert sorted(trials.outcomes(task.id)) == ["noop", "succeeded"]
    assert trials.status(lab) == "RUNNING"
    wait_until_all_agree(trials.platform)


@pytest.mark.parametrize("step", ["claimed", "stop_requested", "committing"])
def test_two_deletes_of_one_lab_stop_it_once(trials: Trials, tmp_path: Path, step: str) -> None:
    lab = trials.running_lab()
    first, second = trials.publish_delete(lab), trials.publish_delete(lab)
    run_together(trials, HIGH, step, tmp_path)
    assert {*trials.outcomes(first), *trials.outcomes(second)} <= {"succeeded", "noop"}
    assert trials.status(lab) == "STOPPED"
    wait_until_all_agree(trials.platform)


@pytest.fixture
def job_image(trials: Trials) -> Iterator[str]:
    """A second image that can be a lab, by a template whose command serves a page in either."""
    bucket = trials.platform.bucket
    default = (DEFAULTS / POD_TEMPLATE).read_bytes()
    command = b"command: [sh, -c, 'test -e /start.sh && . /start.sh; exec python3 -m http.server 8080']\n"
    bucket.put(POD_TEMPLATE, default.replace(b"      ports:\n", b"      " + command + b"      ports:\n", 1))
    image = os.environ["JOB_IMAGE"]
    trials.platform.set_lab_settings(allowed_images=[image, trials.image])
    yield image
    bucket.put(POD_TEMPLATE, default)
    trials.platform.set_lab_settings()


@pytest.mark.parametrize("step", ["rendered", "applied", "committing"])
def test_two_images_for_one_lab_give_one_of_them(
    trials: Trials, lab: int, job_image: str, tmp_path: Path, step: str
) -> None:
    tasks = [trials.publish_create(lab, image=image) for image in (trials.image, job_image)]
    run_together(trials, NORMAL, step, tmp_path)
    assert sorted(outcome for task in tasks for outcome in trials.outcomes(task)) == ["noop", "succeeded"]
    row = trials.platform.database.lab(lab)
    assert row["status"] == "RUNNING"
    assert row["k8s_pod_name"] in [lab_object_name(lab, image) for image in (trials.image, job_image)]
    wait_until_all_agree(trials.platform)


@pytest.mark.parametrize("was", ["PENDING", "RUNNING"])
def test_a_create_after_the_delete_makes_nothing(trials: Trials, was: str) -> None:
    lab = trials.running_lab() if was == "RUNNING" else trials.platform.database.add_lab()
    trials.publish_delete(lab)
    trials.serve(HIGH)
    late = trials.publish_create(lab)
    process = trials.serve(NORMAL)
    assert trials.outcomes(late) == ["noop"]
    assert "object_created" not in process.actions()
    assert trials.status(lab) == "STOPPED"
    wait_until_all_agree(trials.platform)


def kill_until_given_up(trials: Trials, queue: str, step: str) -> None:
    """Kill each container that takes the message until the broker gives it up."""
    broker = trials.platform.broker
    kills = 0
    while not broker.depth(topology.DEAD_LETTER_QUEUE):
        assert trials.faulty(queue, "kill", step).wait() == -signal.SIGKILL
        kills += 1
        eventually(lambda: broker.depth(queue) + broker.depth(topology.DEAD_LETTER_QUEUE), HANGS_S)
    assert kills == topology.DELIVERY_LIMIT + 1
    eventually_equal(lambda: broker.depth(LOW), 1, HANGS_S)


def test_a_create_that_kills_its_containers_fails_its_lab(trials: Trials, lab: int) -> None:
    task_id = trials.publish_create(lab)
    kill_until_given_up(trials, NORMAL, "applied")
    assert len(trials.platform.namespace.names_of(lab)) == 3
    trials.serve(LOW)
    assert trials.outcomes(task_id) == ["started"] * 6 + ["failed"]
    row = trials.platform.database.lab(lab)
    assert (row["status"], row["error_category"]) == ("FAILED", Failure.CONTAINER_CRASHED.category.value)
    assert trials.runs(task_id)[-1]["details"]["cause"] == Failure.CONTAINER_CRASHED.cause
    dead = trials.platform.broker.take(topology.DEAD_LETTER_QUEUE)
    assert (dead.headers["id"], dead.headers["x-last-death-reason"]) == (task_id, "delivery_limit")
    wait_until_all_agree(trials.platform)


@pytest.mark.parametrize("step", ["claimed", "stop_requested"])
def test_a_delete_that_kills_its_containers_is_repeated_by_the_cleanup(trials: Trials, step: str) -> None:
    lab = trials.running_lab()
    task_id = trials.publish_delete(lab)
    kill_until_given_up(trials, HIGH, step)
    trials.serve(LOW)
    assert trials.outcomes(task_id) == ["started"] * (0 if step == "claimed" else 6) + ["dead_lettered"]
    assert trials.status(lab) == "RUNNING"
    dead = trials.platform.broker.take(topology.DEAD_LETTER_QUEUE)
    assert dead.headers["id"] == task_id
    a_while_ago = "UPDATE lab_instances SET stop_requested_at = now() - interval '16 minutes' WHERE id = %s"
    trials.platform.database.rows(a_while_ago, lab)
    trials.platform.broker.publish_task(name=CLEANUP_TIMEOUT_LABS, kwargs={})
    trials.serve(LOW)
    trials.serve(HIGH)
    assert trials.status(lab) == "STOPPED"
    wait_until_all_agree(trials.platform)
