"""A running lab is given other resources: its cgroup changes, its program goes on; or it keeps what it has.

Broker, database, object store and cluster are the real ones; the container is `python -m jobs`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from dispatcher.__main__ import main
from dispatcher.broker import topology
from jobs.failures import Failure
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.containers.container import Process
from tests.support.labs.resizing import ResizedLab, without_limit_range
from tests.support.waiting import eventually_equal

GI, MI = 2**30, 2**20


#: Seconds; a lab is started, and what is refused is waited for twice, perhaps on a busy machine.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def platform(own_platform: OwnPlatform) -> Iterator[OwnPlatform]:
    yield own_platform
    own_platform.containers.end()
    own_platform.set_lab_settings()
    own_platform.broker.empty()


@pytest.fixture
def lab(platform: OwnPlatform) -> Iterator[ResizedLab]:
    """A lab of the default size."""
    lab = ResizedLab.start(platform)
    yield lab
    if lab.status == "RUNNING":
        lab.stop()


@pytest.fixture
def any_size(platform: OwnPlatform) -> Iterator[None]:
    """No LimitRange says no before the node does."""
    with without_limit_range(platform):
        yield


AS_CREATED = {
    "status": "RUNNING",
    "limits": {"cpu": "500m", "memory": "512Mi"},
    "requests": {"cpu": "25m", "memory": str(128 * MI)},
    "cgroup agrees": True,
    "pending": [],
    "note": None,
    "restarts": 0,
}


def wait_as_created(lab: ResizedLab) -> None:
    """The kubelet takes a condition away a moment after the rest of it is right."""
    eventually_equal(lab.settled, AS_CREATED, 60)


def refused(run: dict[str, Any], failure: Failure, **values: Any) -> None:
    error = failure.error(**values)
    assert (run["outcome"], run["details"]["cause"]) == ("failed", failure.cause)
    assert run["error_category"] == failure.category.value
    assert run["error_message"] == error.sentence


def test_a_running_lab_gets_more_and_less_without_a_restart(lab: ResizedLab) -> None:
    began = lab.program_start()
    assert lab.cgroup() == (0.5, 512 * MI)
    run = lab.resize(cpu="1", memory="1Gi")
    assert run["outcome"] == "succeeded"
    assert lab.cgroup() == (1, GI)
    assert lab.spec["requests"] == {"cpu": "50m", "memory": str(256 * MI), "ephemeral-storage": "64Mi"}
    result = run["details"]["result"]
    assert result["before"] == {"cpu": "500m", "memory": "512Mi"}
    assert result["after"] == {"cpu": "1", "memory": "1Gi"}
    assert result["restarts"] == 0
    seconds = (run["finished_at"] - run["published_at"]).total_seconds()
    print(f"in force {result['seconds']:.2f} s after it was asked for, {seconds:.2f} s after the publish")
    assert lab.resize(memory="100M")["outcome"] == "succeeded"
    assert lab.resize(cpu="250m")["outcome"] == "succeeded"
    settled = lab.settled()
    assert settled["limits"] == {"cpu": "250m", "memory": "100M"}
    assert (lab.cgroup()[0], lab.program_start(), lab.restarts) == (0.25, began, 0)
    assert (settled["status"], settled["pending"], settled["note"]) == ("RUNNING", [], None)


@pytest.mark.usefixtures("any_size")
def test_more_than_the_node_has_is_refused_and_taken_back(platform: OwnPlatform, lab: ResizedLab) -> None:
    lab.let_grow(cpu_request_ratio=1)
    most = f"{lab.node_cpu + 100}m"
    run = lab.resize(cpu=most)
    refused(run, Failure.RESIZE_INFEASIBLE, asked=f"cpu {most}", kept="cpu 500m, memory 512Mi")
    assert "Infeasible" in run["details"]["evidence"]
    assert run["details"]["undone"]["confirmed"] is True
    wait_as_created(lab)
    assert platform.broker.is_empty(topology.DEAD_LETTER_QUEUE)


@pytest.mark.usefixtures("whole_node", "any_size")
def test_more_than_the_node_has_free_is_refused_after_a_while(lab: ResizedLab) -> None:
    lab.let_grow(cpu_request_ratio=0.99, resize_timeout_s=3)
    whole = f"{lab.node_cpu}m"
    run = lab.resize(cpu=whole)
    refused(run, Failure.RESIZE_DEFERRED, asked=f"cpu {whole}", kept="cpu 500m, memory 512Mi")
    assert "Deferred" in run["details"]["evidence"]
    wait_as_created(lab)


def test_less_memory_than_is_in_use_is_refused_and_taken_back(lab: ResizedLab) -> None:
    program = lab.use_memory(200 * MI)
    try:
        run = lab.resize(memory="64Mi")
        refused(run, Failure.RESIZE_BELOW_USE, asked="memory 64Mi", kept="cpu 500m, memory 512Mi")
        wait_as_created(lab)
        assert program.poll() is None, "what used the memory has to go on"
    finally:
        program.kill()
        program.wait()


def test_more_than_the_settings_allow_is_refused_before_any_change(
    platform: OwnPlatform, lab: ResizedLab
) -> None:
    version = lab.pod["metadata"]["resourceVersion"]
    run = lab.resize(cpu="2001m")
    refused(run, Failure.RESOURCES_TOO_LARGE, name="cpu", asked="2001m", most="2")
    platform.set_lab_settings(courses={"python": {"lab_ids": [7], "max_resources": {"cpu": "750m"}}})
    run = lab.resize(cpu="1")
    refused(run, Failure.RESOURCES_TOO_LARGE, name="cpu", asked="1", most="750m")
    assert run["details"]["evidence"] == "courses.python.max_resources.cpu"
    assert lab.pod["metadata"]["resourceVersion"] == version


def test_more_than_the_limit_range_allows_is_refused(platform: OwnPlatform, lab: ResizedLab) -> None:
    platform.set_lab_settings(max_resources={"cpu": "5", "memory": "4Gi", "storage": "1Gi"})
    run = lab.resize(cpu="5")
    refused_values = {"asked": "cpu 5", "kept": "cpu 500m, memory 512Mi"}
    assert run["error_message"] == Failure.RESIZE_REFUSED.error(**refused_values).sentence
    assert "maximum cpu usage per Container is 4" in run["details"]["evidence"]
    wait_as_created(lab)
    platform.broker.take(topology.DEAD_LETTER_QUEUE)


def test_a_full_quota_is_waited_for_and_then_given_up(platform: OwnPlatform, lab: ResizedLab) -> None:
    used = lab.platform.namespace.kubectl(
        "get", "quota", "labs", "-o", "jsonpath={.status.used.limits\\.cpu}"
    )
    _set_quota(platform, used)
    try:
        task_id = lab.publish(cpu="1")
        environ: dict[str, Any] = {"CELERY_TASK_MAX_RETRIES": 1, "CELERY_TASK_RETRY_DELAY": 1}
        lab.serve(**environ)
        wait_as_created(lab)
        lab.serve(**environ)
        wait_as_created(lab)
    finally:
        _set_quota(platform, "500")
    first, last = lab.runs(task_id)
    assert [first["outcome"], last["outcome"]] == ["retried", "dead_lettered"]
    assert last["details"]["cause"] == Failure.RESIZE_OVER_QUOTA.cause
    assert "goes on with cpu 500m, memory 512Mi and cannot have cpu 1" in last["error_message"]
    assert last["error_message"].endswith("The lab goes on as it was; the administrator must look at it.")
    platform.broker.take(topology.DEAD_LETTER_QUEUE)


def test_a_lab_that_has_not_started_is_waited_for(platform: OwnPlatform) -> None:
    lab = ResizedLab(platform, platform.database.add_lab())
    run = lab.resize(cpu="1", CELERY_TASK_RETRY_DELAY=600)
    assert (run["outcome"], run["details"]["cause"]) == ("retried", Failure.LAB_NOT_STARTED.cause)
    assert lab.status == "PENDING"


def test_a_node_that_says_nothing_is_waited_for_no_longer_than_allowed(
    platform: OwnPlatform, lab: ResizedLab
) -> None:
    """Its Pod is replaced by one for which there is no scheduler, hence no kubelet; the job is in haste."""
    lab.replace_pod(schedulerName="nobody")
    platform.set_lab_settings(resize_timeout_s=2)
    run = lab.resize(cpu="1", module="tests.support.containers.odd_job", TEST_ODDITY="hasty")
    error = Failure.RESIZE_STUCK.error(asked="cpu 1", kept="cpu 500m, memory 512Mi")
    assert (run["outcome"], run["error_message"]) == ("dead_lettered", error.sentence)
    assert run["details"]["undone"]["confirmed"] is False
    assert lab.spec["limits"]["cpu"] == "500m"
    assert (lab.status, lab.note) == ("RUNNING", None)
    platform.broker.take(topology.DEAD_LETTER_QUEUE)


def command_line(lab: ResizedLab, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run `autolabs lab resize` for a lab; the container comes once it says that it waits, or has ended."""
    monkeypatch.setenv("AMQP_URL", lab.platform.broker.url)
    monkeypatch.setenv("DATABASE_URL", lab.platform.database.url)
    containers: list[Process] = []
    write = sys.stderr.write

    def start_container() -> None:
        if not containers:
            containers.append(lab.platform.containers.start(queue=topology.QUEUE_HIGH, CLAIM_WAIT_S=20))

    def write_and_start(text: str) -> int:
        if "waits for a container" in text:
            start_container()
        return write(text)

    with monkeypatch.context() as patch:
        patch.setattr(sys.stderr, "write", write_and_start)
        code = main(["lab", "resize", str(lab.lab), *words])
    start_container()
    assert containers[0].wait(60) == 0
    return code


def test_the_command_line_says_what_became_of_it(
    lab: ResizedLab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line(lab, monkeypatch, "--cpu", "1", "--memory", "1Gi") == 0
    said = capsys.readouterr()
    assert re.search(
        r"the lab has cpu 1, memory 1Gi \(had cpu 500m, memory 512Mi\), \S+ s after it was asked for",
        said.out,
    )
    assert "waits for a container" in said.err
    assert lab.cgroup() == (1, GI)
    assert command_line(lab, monkeypatch, "--cpu", "9") == 1
    assert "autolabs: The lab asks for cpu 9; at most 2 is allowed." in capsys.readouterr().err
    assert command_line(lab, monkeypatch, "--memory", "1Gi") == 0
    assert "the lab has cpu 1, memory 1Gi already" in capsys.readouterr().out
    assert main(["lab", "resize", str(lab.lab)]) == 1
    assert "new_resources: is empty" in capsys.readouterr().err
    assert command_line(lab, monkeypatch, "--cpu", "750m", "--no-wait") == 0
    assert capsys.readouterr().out.startswith("task ")
    eventually_equal(lambda: lab.cgroup()[0], 0.75, 60)


def _set_quota(platform: OwnPlatform, cpu: str) -> None:
    change = f'{{"spec": {{"hard": {{"limits.cpu": "{cpu}"}}}}}}'
    platform.namespace.kubectl("patch", "quota", "labs", "--type=merge", f"--patch={change}")
