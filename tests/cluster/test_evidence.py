"""Labs that fail on the real cluster leave what operators look for, when their Pod is long gone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from jobs.config.manifests import POD_TEMPLATE
from jobs.config.naming import lab_object_name
from jobs.config.stored import DEFAULTS
from tests.support.clearing import clear
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.factories import create_kwargs
from tests.support.labs.own_labs import HANGS_S
from tests.support.waiting import eventually

#: Some labs have 20 s to start.
pytestmark = [pytest.mark.usefixtures("node_room"), pytest.mark.timeout(3 * HANGS_S)]
CANARY = "hunter2"
CRASHES = f"echo starting; echo db_password={CANARY}; echo KeyError: LAB_TOKEN; exit 3"

FailLab = Callable[..., tuple[int, dict[str, Any]]]


def set_command(platform: OwnPlatform, shell: str) -> None:
    """Let labs run this instead of their image's program."""
    documents = list(yaml.safe_load_all((DEFAULTS / POD_TEMPLATE).read_bytes()))
    documents[0]["spec"]["containers"][0]["command"] = ["/bin/sh", "-c", shell]
    platform.bucket.put(POD_TEMPLATE, yaml.safe_dump_all(documents).encode())


@pytest.fixture
def fail_lab(own_platform: OwnPlatform) -> Iterator[FailLab]:
    """Start a lab that runs a command and fails; return its id and its run."""

    def fail(shell: str, *, resources: dict[str, str] | None = None, **settings: Any) -> Any:
        set_command(own_platform, shell)
        own_platform.set_lab_settings(**settings)
        lab = own_platform.database.add_lab()
        kwargs = create_kwargs(lab_instance_id=lab, docker_image=os.environ["LAB_IMAGE"])
        own_platform.broker.publish_task(kwargs={**kwargs, "resources": resources or {}})
        container = own_platform.containers.start()
        assert container.wait(HANGS_S) == 0
        assert own_platform.database.lab(lab)["status"] == "FAILED"
        (run,) = [r for r in own_platform.database.ledger() if r["lab_instance_id"] == lab]
        assert CANARY not in container.log.read_text()
        assert CANARY not in json.dumps(run, default=str)
        return lab, run

    yield fail
    own_platform.set_lab_settings()
    clear(own_platform)


def events_by_kubectl(platform: OwnPlatform, lab: int) -> list[dict[str, Any]]:
    """Return the Events of the platform about the lab's Pod, as an operator asks for them."""
    name = lab_object_name(lab, os.environ["LAB_IMAGE"])
    shown = platform.namespace.kubectl(
        "get", "events", f"--field-selector=involvedObject.name={name}", "--output=json"
    )
    return [e for e in json.loads(shown)["items"] if e.get("reportingComponent") == "autolabs-jobs"]


def is_gone(platform: OwnPlatform, lab: int) -> bool:
    return platform.namespace.objects_of(lab) == []


def test_a_crash_loop_leaves_its_exit_code_its_log_and_its_events(
    own_platform: OwnPlatform, fail_lab: FailLab
) -> None:
    lab, run = fail_lab(CRASHES)
    seen = run["details"]["seen"]
    (container,) = seen["containers"]
    assert (container["reason"], container["last"]["reason"]) == ("CrashLoopBackOff", "Error")
    assert container["exit_code"] == 3
    assert container["restarts"] >= 1
    assert seen["log"]["previous"] is True
    assert seen["log"]["lines"] == ["starting", "db_password=***", "KeyError: LAB_TOKEN"]
    # The kubelet's own may be minutes late when many pods start.
    assert "Scheduled" in {event["reason"] for event in seen["events"]}
    ready = {c["type"]: c["status"] for c in seen["conditions"]}
    assert ready["Ready"] == "False"
    assert seen["pod"]["node"]
    assert "note" not in seen

    eventually(lambda: is_gone(own_platform, lab), HANGS_S, what="objects gone")
    (event,) = events_by_kubectl(own_platform, lab)
    assert (event["type"], event["reason"]) == ("Warning", "LabProgramEnds")
    assert event["message"] == own_platform.database.lab(lab)["error_message"]
    assert event["involvedObject"]["uid"]
    (row,) = own_platform.database.rows("SELECT * FROM notifications WHERE lab_instance_id = %s", lab)
    assert (row["told"], row["published_at"] is not None) == ("teacher", True)
    described = own_platform.namespace.kubectl("get", "events", "--field-selector=type=Warning")
    assert "LabProgramEnds" in described


def test_a_lab_out_of_memory_is_seen_so(own_platform: OwnPlatform, fail_lab: FailLab) -> None:
    eats = "exec /bin/busybox dd if=/dev/zero of=/dev/null bs=200M count=5"
    _, run = fail_lab(eats, resources={"memory": "16Mi"})
    (container,) = run["details"]["seen"]["containers"]
    assert container["exit_code"] == 137
    # On a busy node the runtime may learn too late why it was killed, and says Error; the failure may be of
    # another start than the evidence, which is taken a moment later.
    told = "OOMKilled" in (container.get("reason"), container.get("last", {}).get("reason"))
    assert run["details"]["cause"] in ({"out_of_memory"} if told else {"out_of_memory", "program_ends"})


def test_a_lab_that_does_not_answer_leaves_its_state_and_its_log(
    own_platform: OwnPlatform, fail_lab: FailLab
) -> None:
    listens_not = "echo waiting for the database; exec /bin/busybox sleep 1000"
    # A node that is full for a moment must not be what is seen.
    lab, run = fail_lab(listens_not, ready_timeout_s=20)
    seen = run["details"]["seen"]
    (container,) = seen["containers"]
    assert (container["state"], container["ready"], container["restarts"]) == ("running", False, 0)
    (ready,) = [condition for condition in seen["conditions"] if condition["type"] == "Ready"]
    assert (ready["status"], ready["reason"]) == ("False", "ContainersNotReady")
    assert "lab" in ready["message"]
    assert seen["log"] == {"container": "lab", "previous": False, "lines": ["waiting for the database"]}
    assert [event["reason"] for event in events_by_kubectl(own_platform, lab)] == ["LabDoesNotAnswer"]


def test_a_failed_lab_is_kept_for_as_long_as_the_settings_say(
    own_platform: OwnPlatform, fail_lab: FailLab
) -> None:
    lab, run = fail_lab(CRASHES, keep_failed_pods_s=4)
    assert not is_gone(own_platform, lab)
    assert run["details"]["objects_kept_s"] == 4
    assert "KeyError" in own_platform.namespace.kubectl(
        "logs", lab_object_name(lab, os.environ["LAB_IMAGE"]), "--previous"
    )
    # KEDA starts it once the message is back in its queue.
    assert own_platform.containers.run(CLAIM_WAIT_S=HANGS_S)[0] == 0
    eventually(lambda: is_gone(own_platform, lab), HANGS_S, what="objects gone")
    outcomes = [r["outcome"] for r in own_platform.database.ledger() if r["lab_instance_id"] == lab]
    assert outcomes == ["failed", "noop"]
