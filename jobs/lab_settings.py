"""The platform's settings for labs, an object in the store that operators edit."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any

from dispatcher.quantities import parse_quantity
from dispatcher.tasks import CreateLabPod
from jobs.failures import Failure
from jobs.templates import parse_documents, template_error

RESOURCES = ("cpu", "memory", "storage")
_MOST = {"cpu": "2", "memory": "4Gi", "storage": "10Gi"}
_SECONDS = {"ready_timeout_s": (1, 240), "keep_failed_pods_s": (0, 3600), "resize_timeout_s": (1, 100)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabSettings:
    """What labs may use and how they are reached; each field is a key of the YAML object."""

    #: Shell patterns of image references; no other image is started.
    allowed_images: list[str]
    #: Limits for what a task leaves out, and the most it may ask for.
    default_resources: dict[str, str] = field(
        default_factory=lambda: {"cpu": "500m", "memory": "512Mi", "storage": "1Gi"}
    )
    max_resources: dict[str, str] = field(default_factory=lambda: dict(_MOST))
    #: Course -> {lab_ids, max_resources}: the most that one of its labs may ask for, of what it names.
    courses: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: lab_id -> {max_resources}: the same for one lab, whatever its course says.
    labs: dict[int, dict[str, Any]] = field(default_factory=dict)
    #: Shares of the limits that are reserved on the node: students are rarely busy all at once.
    cpu_request_ratio: float = 0.05
    memory_request_ratio: float = 0.25
    #: Seconds until a lab must be Ready, 1 to 240; an attempt after a lack of room gets as much again.
    ready_timeout_s: int = 60
    #: Seconds in which a node must give a lab what it asks for, and to wait for another change; 1 to 100.
    resize_timeout_s: int = 30
    #: Seconds for which the objects of a lab that failed stay, for whoever looks into it; 0 to 3600.
    keep_failed_pods_s: int = 0
    #: May use {cluster_ip}, {service}, {namespace}, {port}, {lab_instance_id}.
    connection_url: str = "http://{cluster_ip}:{port}/"

    def check_image(self, image: str) -> None:
        """Raise JobError for an image that is on no list."""
        if not any(fnmatch.fnmatchcase(image, pattern) for pattern in self.allowed_images):
            allowed = ", ".join(self.allowed_images)
            raise Failure.IMAGE_NOT_ALLOWED.error(image=image, allowed=allowed, evidence="allowed_images")

    def resource_values(self, payload: CreateLabPod) -> dict[str, str]:
        """Return the template values for a lab's limits and requests. Raises JobError as `check_most`."""
        most = self._most(payload.lab_id)
        limits = {
            name: payload.resources.get(name) or _least(self.default_resources[name], most[name][0])
            for name in RESOURCES
        }
        self.check_most(payload.lab_id, payload.resources, most)
        requests = self.requests_for(limits)
        return {
            **{f"{name}_limit": limits[name] for name in RESOURCES},
            **{f"{name}_request": request for name, request in requests.items()},
        }

    def check_most(
        self, lab_id: int, asked: Mapping[str, str], most: Mapping[str, tuple[str, str]] | None = None
    ) -> None:
        """Raise JobError if a lab is to have more than it may."""
        allowed = most or self._most(lab_id)
        for name, quantity in asked.items():
            value, key = allowed[name]
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


def _least(one: str, other: str) -> str:
    return one if parse_quantity(one) <= parse_quantity(other) else other


def parse_settings(name: str, content: bytes) -> LabSettings:
    """Return the settings, or raise JobError naming the key that is wrong."""
    document = parse_documents(name, content)[0]
    known = {f.name: f for f in fields(LabSettings)}
    if unknown := sorted(map(str, set(document) - set(known))):
        raise template_error(name, f"has unknown {', '.join(unknown)}")
    problems = [f"{key}: {problem}" for key, value in document.items() if (problem := _problem(key, value))]
    if not problems and ("courses" in document or "labs" in document):
        from jobs.lab_limits import limits_problems

        problems = limits_problems(document, document.get("max_resources") or _MOST)
    if "allowed_images" not in document:
        problems.append("allowed_images: missing")
    if problems:
        raise template_error(name, "; ".join(problems))
    return LabSettings(**document)


def _problem(key: str, value: Any) -> str | None:
    if key in ("courses", "labs"):
        return None  # jobs.lab_limits, once the platform's own are known to be right
    if key in ("default_resources", "max_resources"):
        if not isinstance(value, dict) or set(value) != set(RESOURCES):
            return f"must have exactly {', '.join(RESOURCES)}"
        if not all(isinstance(v, str) for v in value.values()):
            return 'quantities must be text, such as "2"'
        try:
            return None if all(parse_quantity(v) > 0 for v in value.values()) else "must be > 0"
        except ValueError as exc:
            return str(exc)
    if key == "allowed_images":
        valid = isinstance(value, list) and value and all(isinstance(v, str) for v in value)
        return None if valid else "must be a list of patterns"
    if key in ("cpu_request_ratio", "memory_request_ratio"):
        valid = isinstance(value, (int, float)) and 0 < value <= 1
        return None if valid else "must be a number above 0 and at most 1"
    if key == "connection_url":
        return _url_problem(value)
    least, most = _SECONDS[key]
    valid = type(value) is int and least <= value <= most
    return None if valid else f"must be an integer from {least} to {most}"


def _url_problem(value: Any) -> str | None:
    names = {"cluster_ip", "service", "namespace", "port", "lab_instance_id"}
    try:
        if not isinstance(value, str):
            raise TypeError("it must be text")
        value.format(**dict.fromkeys(names, "x"))
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as exc:
        return f"allowed placeholders are {', '.join(sorted(names))} ({exc!r})"
    return None
