"""The CronJobs of the shipped schedules, as the design has them; tests/data/cronjobs.yaml shows a change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cronjobs.__main__ import PERIODIC, main
from cronjobs.manifests import MANAGED_BY, make_cron_job, render
from cronjobs.outbox import NOTIFY_TIMEOUT_S, OUTBOX_TIMEOUT_S
from cronjobs.timetable import SHIPPED, TASKS, Schedule, parse_schedules
from deploy.local.settings import JOB_IMAGE
from keda import podspec

IMAGE = f"{JOB_IMAGE}:0.1.0"
GOLDEN = Path(__file__).parents[2] / "data" / "cronjobs.yaml"
SCHEDULES = parse_schedules(SHIPPED.read_bytes())


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return SCHEDULES[request.param]


@pytest.fixture(params=TASKS)
def any_task(request: pytest.FixtureRequest) -> Schedule:
    return Schedule(name="nightly", task=request.param, schedule="@daily")


def pod_of(schedule: Schedule) -> dict[str, Any]:
    return dict(make_cron_job(schedule, image=IMAGE)["spec"]["jobTemplate"]["spec"]["template"]["spec"])


def container_of(schedule: Schedule) -> dict[str, Any]:
    (container,) = pod_of(schedule)["containers"]
    return dict(container)


def secret_keys(schedule: Schedule) -> dict[str, bool]:
    """Return the keys that the pod sees, and whether they may be missing."""
    volume = next(one for one in pod_of(schedule)["volumes"] if one["name"] == "secrets")
    sources = [source["secret"] for source in volume["projected"]["sources"]]
    assert {source["name"] for source in sources} == {podspec.SECRET}
    assert all(item["key"] == item["path"] for source in sources for item in source["items"])
    return {item["key"]: source.get("optional", False) for source in sources for item in source["items"]}


def test_the_manifests_are_those_of_the_golden_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "--image", IMAGE]) == 0
    assert capsys.readouterr().out == GOLDEN.read_text()


def test_another_document_is_rendered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.yaml"
    file.write_text('nightly: {task: outbox, schedule: "0 3 * * *"}')
    assert main(["render", "--image", IMAGE, "--file", str(file)]) == 0
    (manifest,) = yaml.safe_load_all(capsys.readouterr().out)
    assert (manifest["metadata"]["name"], manifest["spec"]["schedule"]) == ("nightly", "0 3 * * *")
    file.write_text("nightly: {task: dance}")
    with pytest.raises(SystemExit, match="2"):
        main(["render", "--image", IMAGE, "--file", str(file)])
    assert "nightly.task: 'dance' is not allowed; it must be one of cleanup" in capsys.readouterr().err


def test_every_task_of_a_schedule_is_one_of_the_command_line() -> None:
    assert {
        name: ("dry_run", "force") if one.force else ("dry_run",) for name, one in PERIODIC.items()
    } == TASKS


def test_the_names_are_those_of_the_job_container(any_task: Schedule) -> None:
    pod = pod_of(any_task)
    with_cluster = any_task.task in ("health", "sync")
    assert pod["automountServiceAccountToken"] is with_cluster
    assert pod.get("serviceAccountName") == (podspec.SERVICE_ACCOUNT if with_cluster else None)
    assert make_cron_job(any_task, image=IMAGE)["metadata"]["namespace"] == podspec.NAMESPACE


def test_a_pod_is_restricted(any_task: Schedule) -> None:
    pod, container = pod_of(any_task), container_of(any_task)
    assert pod["restartPolicy"] == "Never"
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]) == {"requests", "limits"}
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert all("value" not in one for one in container["env"]), "secrets are files"


def test_a_container_knows_its_pod_and_its_job(any_task: Schedule) -> None:
    paths = {one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"] for one in container_of(any_task)["env"]}
    assert paths == {
        "POD_NAME": "metadata.name",
        "JOB_NAME": "metadata.labels['batch.kubernetes.io/job-name']",
    }


def test_a_container_sees_the_secrets_that_its_task_needs(any_task: Schedule) -> None:
    servers = {"AMQP_URL": False, "DATABASE_URL": False}
    store = {"S3_ENDPOINT": False, "S3_ACCESS_KEY": False, "S3_SECRET_KEY": False}
    webhook = {"NOTIFY_WEBHOOK_URL": True, "NOTIFY_WEBHOOK_SECRET": True}
    shared = {**servers, **store, "ca.crt": True}
    assert secret_keys(any_task) == {**shared, **(webhook if any_task.task == "outbox" else {})}


def test_options_settings_and_a_suspension_are_rendered() -> None:
    schedule = Schedule(
        name="nightly",
        task="cleanup",
        schedule="@daily",
        suspend=True,
        options={"dry_run": True, "force": False},
        env={"S3_BUCKET": "other"},
    )
    assert container_of(schedule)["command"] == ["python3", "-m", "cronjobs", "cleanup", "--dry-run"]
    assert {"name": "S3_BUCKET", "value": "other"} in container_of(schedule)["env"]
    assert make_cron_job(schedule, image=IMAGE)["spec"]["suspend"] is True


def test_a_suspension_that_the_entry_does_not_mention_is_left_as_it_is(schedule: Schedule) -> None:
    assert "suspend" not in make_cron_job(schedule, image=IMAGE)["spec"]


def test_a_run_is_never_repeated_never_doubled_and_never_piled_up(schedule: Schedule) -> None:
    spec = make_cron_job(schedule, image=IMAGE)["spec"]
    job = spec["jobTemplate"]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert job["backoffLimit"] == 0
    assert 10 <= spec["startingDeadlineSeconds"] < 300
    assert spec["successfulJobsHistoryLimit"] <= 3
    assert 0 < job["ttlSecondsAfterFinished"] <= 3600


def test_the_shipped_times() -> None:
    times = {name: (one.task, one.schedule) for name, one in SCHEDULES.items()}
    assert (
        times.items()
        <= {
            "cleanup-timeout-labs": ("cleanup", "*/5 * * * *"),
            "health-check-pods": ("health", "* * * * *"),
            "sync-lab-status": ("sync", "*/10 * * * *"),
            "outbox": ("outbox", "* * * * *"),
        }.items()
    )
    assert {one.time_zone for one in SCHEDULES.values()} == {"Etc/UTC"}
    # A sweep that begins its last batch in time may still wait for the broker, and has to start.
    assert SCHEDULES["outbox"].deadline_s > OUTBOX_TIMEOUT_S + NOTIFY_TIMEOUT_S + 30


def test_labels_explain_a_job_and_its_pod(schedule: Schedule) -> None:
    manifest = make_cron_job(schedule, image=IMAGE)
    template = manifest["spec"]["jobTemplate"]
    labels = manifest["metadata"]["labels"]
    assert template["metadata"]["labels"] == template["spec"]["template"]["metadata"]["labels"] == labels
    assert labels["app.kubernetes.io/managed-by"] == MANAGED_BY
    assert labels["autolabs.io/schedule"] == schedule.name


def test_yaml_has_no_aliases() -> None:
    assert "&id" not in render(SCHEDULES.values(), image=IMAGE)
