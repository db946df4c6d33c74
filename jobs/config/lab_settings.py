"""Say what a lab may use, by platform, course and lab, and where it is reached, as operators set it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any

from dispatcher.ids import MAX_ID, is_id
from dispatcher.quantities import parse_quantity
from dispatcher.tasks import CreateLabPod
from jobs.config.settings_document import (
    QUANTITY,
    Problem,
    Rule,
    list_of,
    mapping_of,
    parsed,
    record,
    whole,
)
from jobs.failures import Failure

RESOURCES = ("cpu", "memory", "storage")
_PLACEHOLDERS = ("cluster_ip", "lab_instance_id", "namespace", "port", "service")


def _check_url(text: str) -> None:
    try:
        text.format(**dict.fromkeys(_PLACEHOLDERS, "x"))
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as exc:
        raise ValueError(f"allowed placeholders are {', '.join(_PLACEHOLDERS)} ({exc!r})") from exc


_TEXT = Rule("text", {"type": "string"}, lambda value: isinstance(value, str))
_RATIO = Rule(
    "a number above 0 and at most 1",
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    lambda value: type(value) in (int, float) and 0 < value <= 1,
)
_RESOURCES = record(dict.fromkeys(RESOURCES, QUANTITY))
_MOST = record(dict.fromkeys(RESOURCES, QUANTITY), least=1)
_LAB_ID = Rule("a lab_id, an integer above 0", {"pattern": "^[1-9][0-9]*$"}, is_id)
_LAB_IDS = list_of(whole(1, MAX_ID), "a list of lab_ids, integers above 0")
_LABS = mapping_of(_LAB_ID, record({"max_resources": _MOST}), "a mapping of lab_ids to {max_resources}")
_COURSES = mapping_of(
    _TEXT,
    record({"lab_ids": _LAB_IDS, "max_resources": _MOST}),
    "a mapping of names to {lab_ids, max_resources}",
)
_URL = parsed(f"text; allowed placeholders are {', '.join(_PLACEHOLDERS)}", _check_url)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabSettings:
    """The limits of labs, and where they are reached."""

    #: Shell patterns of image references; no other image is started.
    allowed_images: Annotated[list[str], list_of(_TEXT, "a list of patterns, one or more", least=1)]
    #: Limits for what a task leaves out.
    default_resources: Annotated[dict[str, str], _RESOURCES] = field(
        default_factory=lambda: {"cpu": "500m", "memory": "512Mi", "storage": "1Gi"}
    )
    #: The most that a task may ask for.
    max_resources: Annotated[dict[str, str], _RESOURCES] = field(
        default_factory=lambda: {"cpu": "2", "memory": "4Gi", "storage": "10Gi"}
    )
    #: The most that a lab of a course may ask for, of what is named; else as max_resources.
    courses: Annotated[dict[str, dict[str, Any]], _COURSES] = field(default_factory=dict)
    #: The most that one lab may ask for, by its lab_id, whatever its course says.
    labs: Annotated[dict[int, dict[str, Any]], _LABS] = field(default_factory=dict)
    #: Share of a CPU limit that is reserved on the node: a class seldom computes all at once.
    cpu_request_ratio: Annotated[float, _RATIO] = 0.05
    #: Share of a memory limit that is reserved.
    memory_request_ratio: Annotated[float, _RATIO] = 0.25
    #: Seconds until a lab must be Ready; an attempt after a lack of room gets as much again.
    ready_timeout_s: Annotated[int, whole(1, 240)] = 60
    #: Seconds in which a node must give a lab what it asks for, and to wait for another change.
    resize_timeout_s: Annotated[int, whole(1, 100)] = 30
    #: Seconds for which the objects of a lab that failed stay, for whoever looks into it.
    keep_failed_pods_s: Annotated[int, whole(0, 3600)] = 0
    #: Where students reach a lab.
    connection_url: Annotated[str, _URL] = "http://{cluster_ip}:{port}/"

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Iterator[Problem]:
        """Yield limits above those of the platform, and labs that are in two courses."""
        course_of: dict[int, str] = {}
        for course, content in values.get("courses", {}).items():
            for lab_id in content["lab_ids"]:
                if course_of.setdefault(lab_id, course) != course:
                    yield ("courses", course, "lab_ids"), f"{lab_id} is in {course_of[lab_id]} as well"
        platform = values.get("max_resources", {})
        for key in ("courses", "labs"):
            for name, content in values.get(key, {}).items():
                for resource, value in content["max_resources"].items():
                    most = platform.get(resource, value)
                    if parse_quantity(value) > parse_quantity(most):
                        text = f"{value} is more than max_resources, {most}"
                        yield (key, name, "max_resources", resource), text

    def check_image(self, image: str) -> None:
        """Raise JobError for an image that is on no list."""
        if not any(fnmatch.fnmatchcase(image, pattern) for pattern in self.allowed_images):
            allowed = ", ".join(self.allowed_images)
            raise Failure.IMAGE_NOT_ALLOWED.error(image=image, allowed=allowed, evidence="allowed_images")

    def resource_values(self, payload: CreateLabPod) -> dict[str, str]:
        """Return the template values for a lab's limits and requests. Raises JobError as `check_most`."""
        most = self._most(payload.lab_id)
        limits = {
            name: payload.resources.get(name)
            or min(self.default_resources[name], most[name][0], key=parse_quantity)
            for name in RESOURCES
        }
        self.check_most(payload.lab_id, payload.resources)
        requests = self.requests_for(limits)
        return {
            **{f"{name}_limit": limit for name, limit in limits.items()},
            **{f"{name}_request": request for name, request in requests.items()},
        }

    def check_most(self, lab_id: int, asked: Mapping[str, str]) -> None:
        """Raise JobError if a lab is to have more than it may."""
        most = self._most(lab_id)
        for name, quantity in asked.items():
            value, key = most[name]
            if parse_quantity(quantity) > parse_quantity(value):
                raise Failure.RESOURCES_TOO_LARGE.error(
                    name=name, asked=quantity, most=value, evidence=f"{key}.{name}"
                )

    def requests_for(self, limits: Mapping[str, str]) -> dict[str, str]:
        """Return what is reserved on the node for limits of cpu and memory, those that are given."""
        requests = {}
        if "cpu" in limits:
            requests["cpu"] = share_of_cpu(limits["cpu"], self.cpu_request_ratio)
        if "memory" in limits:
            requests["memory"] = share_of_memory(limits["memory"], self.memory_request_ratio)
        return requests

    def _most(self, lab_id: int) -> dict[str, tuple[str, str]]:
        """Return resource -> (the most that a lab may have, the key that says so: the narrowest)."""
        most = {name: (value, "max_resources") for name, value in self.max_resources.items()}
        for course, content in self.courses.items():
            if lab_id in content["lab_ids"]:
                key = f"courses.{course}.max_resources"
                most |= {name: (value, key) for name, value in content["max_resources"].items()}
        own = self.labs.get(lab_id, {}).get("max_resources", {})
        return most | {name: (value, f"labs.{lab_id}.max_resources") for name, value in own.items()}


def share_of_cpu(limit: str, ratio: float) -> str:
    """Return a share of a CPU limit in millicores, at least one."""
    return f"{max(1, int(parse_quantity(limit) * 1000 * Decimal(ratio)))}m"


def share_of_memory(limit: str, ratio: float) -> str:
    """Return a share of a memory limit in bytes, at least 1 MiB or the limit."""
    total = int(parse_quantity(limit))
    return str(min(total, max(2**20, int(total * ratio))))
