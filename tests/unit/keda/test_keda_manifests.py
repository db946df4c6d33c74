"""What `python -m keda` prints, line by line as the design has it; tests/data/keda.yaml shows a change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local.settings import JOB_IMAGE
from dispatcher.broker.topology import BINDINGS, QUEUE_HIGH, QUEUE_LOW, QUEUE_NORMAL
from keda.__main__ import main, render
from keda.profiles import CONSUMER_TIMEOUT_S, PROFILES, WORST_CASE_S, with_overrides

IMAGE = f"{JOB_IMAGE}:0.1.0"
GOLDEN = Path(__file__).parents[2] / "data" / "keda.yaml"


def scaled_jobs(text: str) -> dict[str, dict[str, Any]]:
    return {m["metadata"]["name"]: m for m in yaml.safe_load_all(text) if m["kind"] == "ScaledJob"}


@pytest.fixture(params=[profile.name for profile in PROFILES])
def scaled_job(request: pytest.FixtureRequest) -> dict[str, Any]:
    return scaled_jobs(render(PROFILES, image=IMAGE))[request.param]


@pytest.fixture
def job(scaled_job: dict[str, Any]) -> dict[str, Any]:
    return dict(scaled_job["spec"]["jobTargetRef"])


@pytest.fixture
def pod(job: dict[str, Any]) -> dict[str, Any]:
    return dict(job["template"]["spec"])


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["containers"]
    return dict(container)


def env_of(scaled_job: dict[str, Any]) -> dict[str, str]:
    (container,) = scaled_job["spec"]["jobTargetRef"]["template"]["spec"]["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


def test_the_output_is_the_golden_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--image", IMAGE]) == 0
    # After a wanted change: python -m keda --image … > tests/data/keda.yaml
    assert capsys.readouterr().out == GOLDEN.read_text()


def test_every_task_queue_has_one_scaled_job() -> None:
    queues = [profile.queue for profile in PROFILES]
    assert sorted(queues) == sorted(BINDINGS)
    assert len(set(queues)) == len(queues)


@pytest.mark.parametrize(
    ("name", "queue", "priority", "task", "spares"),
    [
        ("lab-operations-high", QUEUE_HIGH, "high", "delete-scale-health", 1),
        ("lab-operations", QUEUE_NORMAL, "normal", "create", 1),
        ("lab-cleanup", QUEUE_LOW, "low", "cleanup-sync", 0),
    ],
)
def test_a_scaled_job_explains_itself(name: str, queue: str, priority: str, task: str, spares: int) -> None:
    made = scaled_jobs(GOLDEN.read_text())[name]
    labels = made["metadata"]["labels"]
    assert made["metadata"]["namespace"] == "platform"
    assert {key.split("/")[1] for key in labels if key.startswith("app.kubernetes.io/")} == {
        "name",
        "instance",
        "component",
        "part-of",
        "managed-by",
    }
    assert labels["app.kubernetes.io/instance"] == name
    assert [labels[f"autolabs.io/{key}"] for key in ("queue", "priority", "task")] == [queue, priority, task]
    # KEDA copies the labels of a ScaledJob to its Jobs, but not to their pods.
    assert made["spec"]["jobTargetRef"]["template"]["metadata"]["labels"] == labels
    assert made["spec"]["minReplicaCount"] == spares
    assert env_of(made)["AUTOLABS_QUEUE"] == queue


def test_one_job_for_one_ready_message(scaled_job: dict[str, Any]) -> None:
    (trigger,) = scaled_job["spec"]["triggers"]
    assert trigger == {
        "type": "rabbitmq",
        "metadata": {
            "protocol": "amqp",
            "queueName": env_of(scaled_job)["AUTOLABS_QUEUE"],
            "mode": "QueueLength",
            "value": "1",
        },
        "authenticationRef": {"name": "autolabs-rabbitmq"},
    }


def test_jobs_without_a_message_are_taken_off_the_count(scaled_job: dict[str, Any]) -> None:
    assert scaled_job["spec"]["scalingStrategy"] == {
        "strategy": "accurate",
        "pendingPodConditions": ["Ready"],
    }
    assert scaled_job["spec"]["pollingInterval"] == 1


def test_a_new_image_lets_running_jobs_end(scaled_job: dict[str, Any]) -> None:
    assert scaled_job["spec"]["rollout"] == {"strategy": "gradual"}


def test_finished_jobs_of_a_burst_of_30_are_kept_but_not_for_ever(
    scaled_job: dict[str, Any], job: dict[str, Any]
) -> None:
    assert 30 < scaled_job["spec"]["successfulJobsHistoryLimit"] <= 100
    assert 0 < scaled_job["spec"]["failedJobsHistoryLimit"] <= 20
    assert job["ttlSecondsAfterFinished"] == 3600


def test_the_broker_alone_delivers_again(job: dict[str, Any], pod: dict[str, Any]) -> None:
    assert job["backoffLimit"] == 0
    assert (job["parallelism"], job["completions"]) == (1, 1)
    assert pod["restartPolicy"] == "Never"


def test_a_drained_node_is_no_failure_and_makes_no_second_pod_beside_the_first(job: dict[str, Any]) -> None:
    assert job["podFailurePolicy"] == {
        "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
    }
    assert job["podReplacementPolicy"] == "Failed"


def test_a_job_may_wait_and_work_but_ends_before_the_broker_takes_its_message(
    scaled_job: dict[str, Any], job: dict[str, Any]
) -> None:
    deadline_s = job["activeDeadlineSeconds"]
    assert deadline_s >= int(env_of(scaled_job)["CLAIM_WAIT_S"]) + WORST_CASE_S
    assert deadline_s < CONSUMER_TIMEOUT_S


def test_ready_is_the_port_that_is_bound_while_a_message_is_held(
    scaled_job: dict[str, Any], container: dict[str, Any]
) -> None:
    (port,) = container["ports"]
    assert container["readinessProbe"]["tcpSocket"] == {"port": port["name"]}
    assert container["readinessProbe"]["periodSeconds"] == 1
    assert "initialDelaySeconds" not in container["readinessProbe"]
    assert str(port["containerPort"]) == env_of(scaled_job)["READY_PORT"] == "8081"


def test_no_shell_stands_between_the_kubelet_and_the_job(container: dict[str, Any]) -> None:
    assert container["name"] == "job"
    assert container["image"] == IMAGE
    assert container["command"] == ["python3", "-m", "jobs"]
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_the_container_has_what_the_contract_gives_it(
    scaled_job: dict[str, Any], container: dict[str, Any]
) -> None:
    # Not those for which the code has a default.
    assert env_of(scaled_job).keys() == {"AUTOLABS_QUEUE", "CLAIM_WAIT_S", "SPARES", "READY_PORT"}
    fields = {
        e["name"]: e["valueFrom"]["fieldRef"]["fieldPath"] for e in container["env"] if "valueFrom" in e
    }
    assert fields == {
        "POD_NAME": "metadata.name",
        "JOB_NAME": "metadata.labels['batch.kubernetes.io/job-name']",
    }


def test_secrets_are_files_and_never_variables(pod: dict[str, Any], container: dict[str, Any]) -> None:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    mount = mounts["/run/secrets/autolabs"]
    assert mount["readOnly"] is True
    assert volumes[mount["name"]]["secret"]["secretName"] == "autolabs-jobs"
    assert "secretKeyRef" not in str(container["env"])
    assert "envFrom" not in container


def test_the_container_is_restricted(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert pod["serviceAccountName"] == "celery-workers-sa"
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    (tmp,) = [m["name"] for m in container["volumeMounts"] if m["mountPath"] == "/tmp"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == tmp]
    assert volume["emptyDir"]["medium"] == "Memory"
    assert volume["emptyDir"]["sizeLimit"]
    assert set(container["resources"]) == {"requests", "limits"}
    assert all(set(values) == {"cpu", "memory"} for values in container["resources"].values())


def test_a_busy_container_is_not_moved_to_save_a_node(job: dict[str, Any]) -> None:
    assert job["template"]["metadata"]["annotations"] == {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }


def test_keda_logs_in_with_a_secret_of_its_own() -> None:
    (made,) = [m for m in yaml.safe_load_all(GOLDEN.read_text()) if m["kind"] == "TriggerAuthentication"]
    assert made["metadata"]["name"] == "autolabs-rabbitmq"
    assert made["spec"] == {
        "secretTargetRef": [
            {"parameter": "host", "name": "autolabs-keda", "key": "host"},
            {"parameter": "tls", "name": "autolabs-keda", "key": "tls"},
            {"parameter": "ca", "name": "autolabs-keda", "key": "ca.crt"},
        ]
    }


def test_the_authentication_comes_before_what_refers_to_it() -> None:
    kinds = [manifest["kind"] for manifest in yaml.safe_load_all(GOLDEN.read_text())]
    assert kinds == ["TriggerAuthentication", "ScaledJob", "ScaledJob", "ScaledJob"]


def test_without_spares_a_container_that_finds_nothing_leaves_soon() -> None:
    made = scaled_jobs(render(with_overrides(PROFILES, spares={"*": 0}), image=IMAGE))
    for scaled_job in made.values():
        assert scaled_job["spec"]["minReplicaCount"] == 0
        assert int(env_of(scaled_job)["CLAIM_WAIT_S"]) < 30


def test_a_job_goes_before_labs_that_wait_for_room(pod: dict[str, Any]) -> None:
    assert pod["priorityClassName"] == "autolabs-platform"
