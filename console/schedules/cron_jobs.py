"""Look at the CronJobs and Jobs of the schedules in the cluster; compare, apply and prune them.

All are checked by the API server before the first is changed. Ours are those with our label; a CronJob of
somebody else under a name of ours is never touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cronjobs.manifests import MANAGED_BY, SCHEDULE_LABEL, make_cron_job
from cronjobs.timetable import Schedule
from dispatcher.errors import DispatcherError
from dispatcher.quantities import parse_quantity
from dispatcher.wording import one_line
from jobs.cluster.client import ApiError, ApiUnavailable, Cluster, Manifest, api_time
from jobs.errors import JobError

FIELD_MANAGER = "autolabs-schedules"
#: Labels of CronJobs of before there were schedules, which came from deploy/base.
_EARLIER = {"app.kubernetes.io/part-of": "autolabs", "app.kubernetes.io/managed-by": "kustomize"}
_OURS = "app.kubernetes.io/managed-by"
#: Longest value in a line of a diff, in characters.
_SHOWN = 120


@dataclass(frozen=True, slots=True)
class Change:
    """What an apply did, or would do, to one CronJob."""

    name: str
    #: created, changed, replaced, unchanged or deleted.
    what: str
    #: One line for each field that differs.
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CronJobs:
    """The CronJobs, Jobs and pods of one namespace."""

    cluster: Cluster
    namespace: str
    #: Image of a CronJob where there is none yet.
    first_image: str | None = None

    @property
    def path(self) -> str:
        return f"/apis/batch/v1/namespaces/{self.namespace}/cronjobs"

    @property
    def jobs_path(self) -> str:
        return f"/apis/batch/v1/namespaces/{self.namespace}/jobs"

    def live(self) -> dict[str, Manifest]:
        """Return all CronJobs of the namespace by name, whoever's they are."""
        return {item["metadata"]["name"]: item for item in self.cluster.list_items(self.path)[0]}

    def jobs(self, name: str = "") -> list[Manifest]:
        """Return the Jobs of one schedule or of all, the latest first."""
        selector = f"{SCHEDULE_LABEL}={name}" if name else SCHEDULE_LABEL
        items = self.cluster.list_items(self.jobs_path, labelSelector=selector)[0]
        return sorted(items, key=lambda item: str(item["metadata"]["creationTimestamp"]), reverse=True)

    def apply(
        self, schedules: Mapping[str, Schedule], *, image: str | None, dry_run: bool = False
    ) -> list[Change]:
        """Bring the CronJobs to the schedules and delete those of ours that are no longer listed.

        Raises DispatcherError, before anything is changed if the API server refuses one.
        """
        live = self.live()
        wanted = {
            name: make_cron_job(schedule, image=self._image(name, live, image), namespace=self.namespace)
            for name, schedule in schedules.items()
        }
        there = [name for name in wanted if name in live and not is_ours(live[name])]
        earlier = {name for name in there if _is_earlier(live[name])}
        if foreign := ", ".join(name for name in there if name not in earlier):
            raise DispatcherError(
                f"a CronJob {foreign} is there already and is not ours ({_OURS} is not {MANAGED_BY}):"
                " delete it, or give the schedule another name"
            )
        changes = [
            _change(name, live.get(name), self._check(manifest, as_new=name in earlier), name in earlier)
            for name, manifest in wanted.items()
        ]
        pruned = [item for name, item in live.items() if is_ours(item) and name not in wanted]
        if not dry_run:
            for name in earlier:
                # Delete and create: fields that its other owner set would survive an update.
                self._delete(live[name])
            for manifest in wanted.values():
                self._apply_one(manifest)
            for item in pruned:
                self._delete(item)
        return changes + [Change(item["metadata"]["name"], "deleted") for item in pruned]

    def _image(self, name: str, live: Mapping[str, Manifest], told: str | None) -> str:
        image = told or image_of(name, live) or self.first_image
        if image is None:
            raise DispatcherError(f"no image is known for {name}: give --image, or set JOB_IMAGE")
        return image

    def _check(self, manifest: Manifest, *, as_new: bool) -> Manifest:
        """Return what an apply would make, beside the one that is there if it is to go."""
        if as_new:
            name = f"{manifest['metadata']['name'][:48]}-new"
            manifest = {**manifest, "metadata": {**manifest["metadata"], "name": name}}
        return self._apply_one(manifest, dry_run=True)

    def _apply_one(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        name = manifest["metadata"]["name"]
        try:
            return self.cluster.apply(
                f"{self.path}/{name}", manifest, field_manager=FIELD_MANAGER, take_over=True, dry_run=dry_run
            )
        except ApiError as exc:
            raise DispatcherError(f"the API server refuses {name}: {one_line(exc.message)}") from exc

    def _delete(self, item: Manifest) -> None:
        metadata = item["metadata"]
        self.cluster.delete(f"{self.path}/{metadata['name']}", uid=metadata["uid"], grace_s=None)


@contextmanager
def api_errors() -> Iterator[None]:
    """Turn what the cluster and the store say into DispatcherError."""
    try:
        yield
    except ApiError as exc:
        raise DispatcherError(f"the API server refuses: {one_line(str(exc))}") from exc
    except ApiUnavailable as exc:
        raise DispatcherError(f"the API server does not answer: {one_line(str(exc))}") from exc
    except JobError as exc:
        raise DispatcherError(one_line(exc.evidence or str(exc))) from exc


def is_ours(item: Manifest) -> bool:
    """Tell whether a CronJob was made from a schedule."""
    return bool(item["metadata"].get("labels", {}).get(_OURS) == MANAGED_BY)


def job_outcome(job: Manifest) -> tuple[str, str]:
    """Return succeeded, failed or running, and why it failed."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition["status"] == "True" and condition["type"] == "Complete":
            return "succeeded", ""
        if condition["status"] == "True" and condition["type"] == "Failed":
            return "failed", f"{condition.get('reason', '')}: {condition.get('message', '')}"
    return "running", ""


def job_duration_s(job: Manifest) -> float | None:
    """Return how long a Job took; None while it runs."""
    status = job.get("status", {})
    start = api_time(status.get("startTime"))
    ends = [one["lastTransitionTime"] for one in status.get("conditions", []) if one["type"] == "Failed"]
    end = api_time(status.get("completionTime") or next(iter(ends), None))
    return (end - start).total_seconds() if start and end else None


def task_of(item: Manifest) -> str:
    """Return the task of a CronJob, as `python -m cronjobs TASK` names it."""
    return str(item["metadata"].get("labels", {}).get("app.kubernetes.io/component", ""))


def image_of(name: str, live: Mapping[str, Manifest]) -> str | None:
    """Return the image of a CronJob, or of another of ours."""
    pods = {
        key: item["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        for key, item in live.items()
        if is_ours(item)
    }
    found: dict[str, str] = {key: pod["containers"][0]["image"] for key, pod in pods.items()}
    return found.get(name) or next(iter(found.values()), None)


def differences(before: Any, after: Any, *, path: str = "", all_keys: bool = True) -> Iterator[str]:
    """Yield a line for each field that differs; what only `before` has is one with `all_keys` alone."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*after, *(key for key in before if all_keys and key not in after)]:
            where = f"{path}.{key}" if path else str(key)
            yield from differences(before.get(key), after.get(key), path=where, all_keys=all_keys)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for at, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, path=f"{path}[{at}]", all_keys=all_keys)
    elif before != after and not (".resources." in path and _same_quantity(before, after)):
        yield f"{path}: {_shown(before)} -> {_shown(after)}"


def desired(item: Manifest) -> Manifest:
    """Return of a CronJob what an apply is about."""
    return {"labels": item["metadata"].get("labels", {}), "spec": item["spec"]}


def _change(name: str, before: Manifest | None, after: Manifest, earlier: bool) -> Change:
    if before is None:
        return Change(name, "created")
    lines = list(differences(desired(before), desired(after)))
    return Change(name, "replaced" if earlier else "changed" if lines else "unchanged", lines)


def _is_earlier(item: Manifest) -> bool:
    labels: dict[str, str] = item["metadata"].get("labels", {})
    return labels.items() >= _EARLIER.items()


def _same_quantity(one: object, other: object) -> bool:
    try:
        return parse_quantity(str(one)) == parse_quantity(str(other))
    except ValueError:
        return False


def _shown(value: object) -> str:
    return "nothing" if value is None else one_line(value if isinstance(value, str) else repr(value), _SHOWN)
