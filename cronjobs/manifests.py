"""Make the CronJob of an entry of the schedules; its container runs `python -m cronjobs TASK` once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cronjobs.timetable import Schedule
from keda.podspec import NAMESPACE, SECRET, make_common_labels, make_pod_spec

MANAGED_BY = "autolabs-schedules"
#: Label of a CronJob, of its Jobs and of their pods: the name of the entry.
SCHEDULE_LABEL = "autolabs.io/schedule"
#: Tasks that talk to the API server, with the rights of a job container.
_WITH_CLUSTER = ("health", "sync")
_SERVERS = ("AMQP_URL", "DATABASE_URL")
_STORE = ("S3_ENDPOINT", "S3_ACCESS_KEY", "S3_SECRET_KEY")
_AUTHORITIES = ("ca.crt",)
_WEBHOOK = ("NOTIFY_WEBHOOK_URL", "NOTIFY_WEBHOOK_SECRET")


def make_labels(schedule: Schedule) -> dict[str, str]:
    """Return the labels of a CronJob, its Jobs and their pods; NetworkPolicies select by the name."""
    name, component = f"autolabs-{schedule.task}", schedule.task
    return {
        **make_common_labels(name, instance=schedule.name, component=component, managed_by=MANAGED_BY),
        SCHEDULE_LABEL: schedule.name,
    }


def make_cron_job(schedule: Schedule, *, image: str, namespace: str = NAMESPACE) -> dict[str, Any]:
    """Return the CronJob of an entry; `suspend` is in it only if the entry has it, or else stays as it is."""
    labels = make_labels(schedule)
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": schedule.name, "namespace": namespace, "labels": labels},
        "spec": {
            "schedule": schedule.schedule,
            "timeZone": schedule.time_zone,
            "concurrencyPolicy": schedule.concurrency,
            "startingDeadlineSeconds": schedule.starting_deadline_s,
            "successfulJobsHistoryLimit": schedule.successful_history,
            "failedJobsHistoryLimit": schedule.failed_history,
            **({} if schedule.suspend is None else {"suspend": schedule.suspend}),
            "jobTemplate": {
                "metadata": {"labels": labels},
                "spec": {
                    # The next run does what this one could not.
                    "backoffLimit": 0,
                    "activeDeadlineSeconds": schedule.deadline_s,
                    "ttlSecondsAfterFinished": schedule.ttl_s,
                    "template": {"metadata": {"labels": labels}, "spec": _make_pod_spec(schedule, image)},
                },
            },
        },
    }


def render(schedules: Iterable[Schedule], *, image: str) -> str:
    import yaml

    manifests = [make_cron_job(schedule, image=image) for schedule in schedules]

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True  # the labels are there three times

    return str(yaml.dump_all(manifests, Dumper=Plain, sort_keys=False))


def _make_pod_spec(schedule: Schedule, image: str) -> dict[str, Any]:
    return make_pod_spec(
        schedule.task,
        image=image,
        command=["python3", "-m", "cronjobs", schedule.task, *schedule.arguments],
        env=schedule.env,
        resources=schedule.resources,
        secrets={"projected": {"defaultMode": 0o440, "sources": _secrets(schedule)}},
        with_cluster=schedule.task in _WITH_CLUSTER,
    )


def _secrets(schedule: Schedule) -> list[dict[str, Any]]:
    # Without private authorities, or without a webhook, the keys are not there.
    optional = [_AUTHORITIES, *([_WEBHOOK] if schedule.task == "outbox" else [])]
    return [
        {"secret": _source((*_SERVERS, *_STORE))},
        *({"secret": {**_source(keys), "optional": True}} for keys in optional),
    ]


def _source(keys: tuple[str, ...]) -> dict[str, Any]:
    return {"name": SECRET, "items": [{"key": key, "path": key} for key in keys]}
