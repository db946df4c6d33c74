"""The platform's settings for labs, an object in the store that operators edit."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field, fields
from typing import Any

from dispatcher.tasks import CreateLabPod
from jobs.failures import Failure
from jobs.quantities import parse_quantity, share_of_cpu, share_of_memory
from jobs.templates import parse_documents, template_error

RESOURCES = ("cpu", "memory", "storage")
_SECONDS = {"ready_timeout_s": (1, 240), "keep_failed_pods_s": (0, 3600)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabSettings:
    """What labs may use and how they are reached; each field is a key of the YAML object."""

    #: Shell patterns of image references; no other image is started.
    allowed_images: list[str]
    #: Limits for what a task leaves out, and the most it may ask for.
    default_resources: dict[str, str] = field(
        default_factory=lambda: {"cpu": "500m", "memory": "512Mi", "storage": "1Gi"}
    )
    max_resources: dict[str, str] = field(
        default_factory=lambda: {"cpu": "2", "memory": "4Gi", "storage": "10Gi"}
    )
    #: Shares of the limits that are reserved on the node: students are rarely busy all at once.
    cpu_request_ratio: float = 0.05
    memory_request_ratio: float = 0.25
    #: Seconds until a lab must be Ready, 1 to 240; an attempt after a lack of room gets as much again.
    ready_timeout_s: int = 60
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
        """Return the template values for a lab's limits and requests."""
        limits = self.default_resources | payload.resources
        for name in RESOURCES:
            if parse_quantity(limits[name]) > parse_quantity(self.max_resources[name]):
                raise Failure.RESOURCES_TOO_LARGE.error(
                    name=name,
                    asked=limits[name],
                    most=self.max_resources[name],
                    evidence=f"max_resources.{name}",
                )
        return {
            "cpu_limit": limits["cpu"],
            "memory_limit": limits["memory"],
            "storage_limit": limits["storage"],
            "cpu_request": share_of_cpu(limits["cpu"], self.cpu_request_ratio),
            "memory_request": share_of_memory(limits["memory"], self.memory_request_ratio),
        }


def parse_settings(name: str, content: bytes) -> LabSettings:
    """Return the settings, or raise JobError naming the key that is wrong."""
    document = parse_documents(name, content)[0]
    known = {f.name: f for f in fields(LabSettings)}
    if unknown := sorted(map(str, set(document) - set(known))):
        raise template_error(name, f"has unknown {', '.join(unknown)}")
    problems = [f"{key}: {problem}" for key, value in document.items() if (problem := _problem(key, value))]
    if "allowed_images" not in document:
        problems.append("allowed_images: missing")
    if problems:
        raise template_error(name, "; ".join(problems))
    return LabSettings(**document)


def _problem(key: str, value: Any) -> str | None:
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
