"""The contract with the job containers: task names, typed payloads, routing.

Backends and containers call `parse_payload`, so that a message which passes in a backend cannot be refused
later for its form. A container passes over what a stop does not need (`accept_payload`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, TypeAlias

from dispatcher.errors import InvalidTask
from dispatcher.ids import MAX_ID, is_id, meant_id, read_id
from dispatcher.quantities import parse_quantity
from dispatcher.text import MAX_CHARACTERS, cut, scrubbed

CREATE_LAB_POD = "celery_workers.create_lab_pod"
DELETE_LAB_POD = "celery_workers.delete_lab_pod"
CLEANUP_TIMEOUT_LABS = "celery_workers.cleanup_timeout_labs"
SCALE_LAB_RESOURCES = "celery_workers.scale_lab_resources"
HEALTH_CHECK_PODS = "celery_workers.health_check_pods"
SYNC_LAB_STATUS = "celery_workers.sync_lab_status"

#: Task name -> routing key on the topic exchange `autolabs.tasks`.
ROUTING_KEYS: dict[str, str] = {
    CREATE_LAB_POD: "lab.create",
    DELETE_LAB_POD: "lab.delete",
    CLEANUP_TIMEOUT_LABS: "lab.cleanup",
    SCALE_LAB_RESOURCES: "lab.scale",
    HEALTH_CHECK_PODS: "lab.health",
    SYNC_LAB_STATUS: "lab.sync",
}


_IDS = ("lab_instance_id", "lab_id", "student_id")


def routing_key(name: str) -> str:
    """Return the routing key of a task; one that nobody knows goes where a container will refuse it."""
    return ROUTING_KEYS.get(name, ROUTING_KEYS[CREATE_LAB_POD])


#: Longest delay of a task in seconds, about 8.5 years: what the 28 levels of the delay ladder hold.
MAX_DELAY_S = 2**28 - 1
# docker.io/library/reference grammar, lower-case repository, optional tag and digest
_IMAGE = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]{1,5})?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
_CPU = re.compile(r"[1-9][0-9]{0,8}m|(?=[0-9.]*[1-9])[0-9]{1,6}(?:\.[0-9]{1,3})?")
_BYTES = re.compile(r"[1-9][0-9]{0,14}(?:k|M|G|T|Ki|Mi|Gi|Ti)?")
#: With less a container may not even be made: runc itself runs in the lab's cgroup at first.
LEAST_MEMORY = "16Mi"
_POD_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_QUANTITIES = {
    "cpu": (_CPU, '"500m" or "2"'),
    "memory": (_BYTES, '"512Mi" or "2Gi"'),
    "storage": (_BYTES, '"1Gi"'),
}


def _shown(value: object) -> str:
    # Whoever reads of a lab sees it, and an image may be named with the password of its registry.
    return cut(scrubbed(repr(value)[:MAX_CHARACTERS]), 80)


def _named(key: object) -> str:
    """Return a key as a part of a field's name; what is no name is shown as it is written."""
    return key if isinstance(key, str) and key.isidentifier() else _shown(key)


def lab_instance_id_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Return which lab a task is about, acceptable or not; None if it names none."""
    return meant_id(kwargs.get("lab_instance_id", args[0] if args else None))


def _check_id(name: str, value: object) -> None:
    if not is_id(value):
        raise InvalidTask(name, f"{_shown(value)} is not allowed; it must be an integer from 1 to {MAX_ID}")


def _check_bool(name: str, value: object) -> None:
    if type(value) is not bool:
        raise InvalidTask(name, f"{_shown(value)} is not allowed; it must be true or false")


def _check_match(name: str, value: object, pattern: re.Pattern[str], allowed: str) -> None:
    if not isinstance(value, str) or len(value) > 512 or not pattern.fullmatch(value):
        raise InvalidTask(name, f"{_shown(value)} is not allowed; it must be {allowed}")


def _check_resources(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise InvalidTask(name, f"{_shown(value)} is not allowed; it must be a mapping")
    for key, quantity in value.items():
        if key not in _QUANTITIES:
            allowed = ", ".join(_QUANTITIES)
            raise InvalidTask(f"{name}.{_named(key)}", f"is unknown; allowed are {allowed}")
        pattern, example = _QUANTITIES[key]
        _check_match(f"{name}.{key}", quantity, pattern, f"a Kubernetes quantity such as {example}")
        if key == "memory" and parse_quantity(quantity) < parse_quantity(LEAST_MEMORY):
            problem = f"it must be at least {LEAST_MEMORY}; a number without a unit is bytes"
            raise InvalidTask(f"{name}.{key}", f"{_shown(quantity)} is not allowed; {problem}")


def own_mapping(given: Mapping[str, str] | None) -> dict[str, str]:
    """Return a copy of a caller's resources; what is no mapping is passed on, for the payload to name it."""
    return dict(given or {}) if isinstance(given, Mapping | None) else given


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateLabPod:
    """Start the lab of a PENDING `lab_instances` row."""

    task_name: ClassVar[str] = CREATE_LAB_POD

    lab_instance_id: int
    lab_id: int
    student_id: int
    #: Image reference, with tag or digest; which repositories are allowed is a platform setting.
    docker_image: str
    #: Limits as Kubernetes quantities: cpu, memory, storage; what is left out has a platform default.
    resources: dict[str, str] = field(default_factory=dict)
    #: True: the lab reaches nothing but DNS. False: also public addresses.
    network_isolated: bool = True

    def __post_init__(self) -> None:
        for name in _IDS:
            _check_id(name, getattr(self, name))
        _check_match(
            "docker_image", self.docker_image, _IMAGE, 'an image reference such as "host/path/name:tag"'
        )
        _check_resources("resources", self.resources)
        _check_bool("network_isolated", self.network_isolated)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteLabPod:
    """Stop a lab and take its objects away; absent counts as done."""

    task_name: ClassVar[str] = DELETE_LAB_POD

    lab_instance_id: int
    #: What the caller believes the Pod is called. A lab is stopped by its id, whatever stands here.
    k8s_pod_name: str | None = None
    #: True: no grace period for the lab's processes.
    force: bool = False

    def __post_init__(self) -> None:
        _check_id("lab_instance_id", self.lab_instance_id)
        if self.k8s_pod_name is not None:
            _check_match(
                "k8s_pod_name", self.k8s_pod_name, _POD_NAME, "a Pod name of at most 63 of [a-z0-9-]"
            )
        _check_bool("force", self.force)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleLabResources:
    """Give a RUNNING lab other limits, without a restart; as they were if that cannot be."""

    task_name: ClassVar[str] = SCALE_LAB_RESOURCES

    lab_instance_id: int
    #: Limits as Kubernetes quantities: cpu, memory or both.
    new_resources: dict[str, str]

    def __post_init__(self) -> None:
        _check_id("lab_instance_id", self.lab_instance_id)
        _check_resources("new_resources", self.new_resources)
        if not self.new_resources:
            raise InvalidTask("new_resources", "is empty; allowed are cpu, memory or both")
        if "storage" in self.new_resources:
            problem = "cannot be changed while a lab runs; allowed are cpu and memory"
            raise InvalidTask("new_resources.storage", problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ForAllLabs:
    #: True: only say what would be done.
    dry_run: bool = False
    #: True: however many labs it is.
    force: bool = False

    def __post_init__(self) -> None:
        _check_bool("dry_run", self.dry_run)
        _check_bool("force", self.force)


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupTimeoutLabs(_ForAllLabs):
    """Ask for the deletion of every lab whose time is over, or that never became usable."""

    task_name: ClassVar[str] = CLEANUP_TIMEOUT_LABS


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheckPods(_ForAllLabs):
    """Look at the Pod of every RUNNING lab, and fail labs that cannot be used any more."""

    task_name: ClassVar[str] = HEALTH_CHECK_PODS


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncLabStatus(_ForAllLabs):
    """Compare rows and objects, both ways, and mend what differs."""

    task_name: ClassVar[str] = SYNC_LAB_STATUS


#: Tasks for all labs, done at their times or when asked.
PeriodicPayload: TypeAlias = CleanupTimeoutLabs | HealthCheckPods | SyncLabStatus
Payload: TypeAlias = CreateLabPod | DeleteLabPod | ScaleLabResources | PeriodicPayload

_KINDS: tuple[type[Payload], ...] = (
    CreateLabPod,
    DeleteLabPod,
    ScaleLabResources,
    CleanupTimeoutLabs,
    HealthCheckPods,
    SyncLabStatus,
)
PAYLOADS: dict[str, type[Payload]] = {kind.task_name: kind for kind in _KINDS}

#: Payload type -> its arguments, in the order in which they may be given by position.
FIELD_NAMES = {kind: tuple(f.name for f in fields(kind)) for kind in PAYLOADS.values()}
_REQUIRED = {
    kind: tuple(f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)
    for kind in PAYLOADS.values()
}


def parse_payload(name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Payload:
    """Return the typed payload of a task; positional arguments follow the payload's field order.

    Raises InvalidTask if the name is unknown, or an argument is missing, unknown or not acceptable.
    """
    payload_type = PAYLOADS.get(name)
    if payload_type is None:
        known = ", ".join(PAYLOADS)
        raise InvalidTask("task", f"{_shown(name)} is unknown; allowed are {known}")
    names = FIELD_NAMES[payload_type]
    values = _by_name(name, names, args, kwargs or {})
    if "resources" in values and values["resources"] is None:
        del values["resources"]  # a backend that has no preference sends null
    required = _REQUIRED[payload_type]
    for key in required:
        if key not in values:
            raise InvalidTask(key, f"is missing; {name} needs {', '.join(required)}")
    return payload_type(**{key: _plain(key, value) for key, value in values.items()})


def accept_payload(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Payload, dict[str, str]]:
    """Return the payload as a container takes it, and field -> problem for what it passes over.

    A stop is not lost for what it does not need: whatever names one lab stops it. Raises InvalidTask.
    """
    if name != DELETE_LAB_POD:
        return parse_payload(name, args, kwargs), {}
    names, passed_over = FIELD_NAMES[DeleteLabPod], {}
    given = [*zip(names, args, strict=False), *kwargs.items()]
    labs = [value for key, value in given if key == "lab_instance_id"]
    values: dict[str, Any] = {"lab_instance_id": _meant_lab(labs)}
    if read_id(labs[0]) is None:
        passed_over["lab_instance_id"] = f"{_shown(labs[0])} is read as {values['lab_instance_id']}"
    for key, value in given:
        if key == "lab_instance_id":
            continue
        try:
            _check_known(key, name, names)
            DeleteLabPod(lab_instance_id=1, **{key: value})
            values[key] = value
        except InvalidTask as exc:
            passed_over[exc.field] = exc.problem
    if len(args) > len(names):
        passed_over["args"] = f"{len(args)} positional arguments; allowed are {len(names)}"
    return DeleteLabPod(**values), passed_over


def _meant_lab(values: list[Any]) -> int:
    found = {meant_id(value) for value in values}
    if len(found) > 1:
        raise InvalidTask("lab_instance_id", "is given twice, by position and by name, and is not the same")
    if not found:
        raise InvalidTask("lab_instance_id", f"is missing; {DELETE_LAB_POD} needs lab_instance_id")
    (lab,) = found
    if lab is None:
        _check_id("lab_instance_id", values[0])
        raise AssertionError("what is an id means one")
    return lab


def _plain(key: str, value: object) -> Any:
    """Return an id as an integer, if it is one in another form; what is none is refused by its payload."""
    found = read_id(value) if key in _IDS else None
    return value if found is None else found


def _check_known(key: str, name: str, names: Sequence[str]) -> None:
    if key not in names:
        allowed = ", ".join(names) or "none"
        raise InvalidTask(_named(key), f"is not an argument of {name}; allowed are {allowed}")


def _by_name(
    name: str, names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    if len(args) > len(names):
        raise InvalidTask("args", f"{len(args)} positional arguments; allowed are {len(names)}")
    values = dict(zip(names, args, strict=False))
    for key, value in kwargs.items():
        _check_known(key, name, names)
        if key in values:
            raise InvalidTask(key, "is given twice, by position and by name")
        values[key] = value
    return values


def payload_kwargs(payload: Payload) -> dict[str, Any]:
    return {name: getattr(payload, name) for name in FIELD_NAMES[type(payload)]}
