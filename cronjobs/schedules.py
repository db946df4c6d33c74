"""The schedules as data: settings/schedules.yaml, read strictly."""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import timezone, tzinfo
from typing import Any

import yaml

from cronjobs.cron import parse_cron
from dispatcher.errors import InvalidSettings
from dispatcher.quantities import parse_quantity
from dispatcher.terminal import one_line
from jobs.configs import DEFAULTS

#: Key in the bucket.
SCHEDULES = "settings/schedules.yaml"
#: The schedules of this release.
SHIPPED = DEFAULTS / SCHEDULES
#: Task -> its options, as `python -m cronjobs TASK` has them.
TASKS: dict[str, tuple[str, ...]] = {
    "cleanup": ("dry_run", "force"),
    "health": ("dry_run", "force"),
    "sync": ("dry_run", "force"),
    "outbox": ("dry_run",),
}
CONCURRENCY = ("Forbid", "Allow", "Replace")
#: Settings of a container that may differ from the defaults; the others are secret.
OVERRIDABLE = ("S3_BUCKET", "KUBECONFIG_OBJECT", "LAB_NAMESPACE", "AMQP_HEARTBEAT_S")
RESOURCES = {"requests": {"cpu": "25m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}}
#: Characters; Kubernetes adds eleven for the name of a Job.
_NAME_LENGTH = 52


class InvalidSchedules(InvalidSettings):
    """Raised once with everything that is wrong in a document."""

    def __init__(self, source: str, problems: list[str]) -> None:
        super().__init__(problems)
        self.args = (f"{source} is not acceptable:\n  " + "\n  ".join(problems),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One entry; each field but the name is a key of it."""

    name: str
    #: What runs, one of TASKS.
    task: str
    #: Five cron fields or a macro.
    schedule: str
    #: Of the tz database; hours and days are those of its clocks.
    time_zone: str = "Etc/UTC"
    #: Whether a run begins while the last goes on: Forbid, Allow, or Replace it.
    concurrency: str = "Forbid"
    #: Seconds by which a run may begin late, after the controller was away.
    starting_deadline_s: int = 60
    #: Seconds a run may take.
    deadline_s: int = 240
    #: Jobs that are kept.
    successful_history: int = 3
    failed_history: int = 3
    #: Seconds for which a Job is kept at most.
    ttl_s: int = 3600
    #: None: as it is in the cluster.
    suspend: bool | None = None
    #: dry_run, force.
    options: Mapping[str, bool] = field(default_factory=dict)
    #: Requests and limits of the container.
    resources: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: RESOURCES)
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def arguments(self) -> list[str]:
        """Return the options as words of a command line."""
        return [option_word(name) for name, wanted in self.options.items() if wanted]


def option_word(name: str) -> str:
    """Return an option of a task as a word of a command line."""
    return f"--{name.replace('_', '-')}"


KEYS = tuple(f.name for f in fields(Schedule) if f.name != "name")
#: Key -> least and greatest value. Kubernetes looks every ten seconds: with less, nothing would ever run.
_RANGES = {
    "starting_deadline_s": (10, 604_800),
    "deadline_s": (10, 86_400),
    "successful_history": (0, 100),
    "failed_history": (0, 100),
    "ttl_s": (60, 604_800),
}


def parse_schedules(content: bytes, source: str = SCHEDULES) -> dict[str, Schedule]:
    """Return the entries by name. Raises InvalidSchedules, which lists all problems."""
    try:
        text = content.decode()
        anchors = _has_anchors(text)
        root = None if anchors else yaml.compose(text, Loader=yaml.SafeLoader)
        document = None if anchors else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as exc:
        hint = '; a schedule needs quotes: "*/5 * * * *"' if "alias" in str(exc) else ""
        raise InvalidSchedules(source, [f"no YAML: {one_line(str(exc))}{hint}"]) from exc
    if anchors:
        raise InvalidSchedules(source, ["must have no anchors and aliases (& and *)"])
    if not isinstance(document, dict) or not document:
        raise InvalidSchedules(source, ["must map names to entries, at least one"])
    problems = [f"{name}: is there twice" for name in _twice(root)]
    lines = _lines(root)
    for name, entry in document.items():
        for key, problem in _entry_problems(name, entry):
            line = lines.get((str(name), str(key))) or lines.get((str(name), ""))
            where = f" (line {line})" if line else ""
            problems.append(f"{one_line(str(name), 80)}: {problem}{where}")
    if problems:
        raise InvalidSchedules(source, problems)
    return {name: Schedule(name=name, **entry) for name, entry in document.items()}


def zone_of(name: str) -> tzinfo | None:
    """Return a time zone; None where this machine has no tz database."""
    if name in ("Etc/UTC", "UTC"):
        return timezone.utc
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return None


def _has_anchors(text: str) -> bool:
    # A change of one entry would change another, and seven levels of aliases take seconds to read.
    events = yaml.parse(text, Loader=yaml.SafeLoader)
    return any(getattr(event, "anchor", None) is not None for event in events)


def _twice(root: yaml.Node | None, path: str = "") -> Iterator[str]:
    if not isinstance(root, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in root.value:
        name = f"{path}{getattr(key, 'value', '')}"
        if name in seen:
            yield name
        seen.add(name)
        yield from _twice(value, f"{name}.")


def _lines(root: yaml.Node | None) -> dict[tuple[str, str], int]:
    """Return the lines, from 1 on, of each name with the key "", and of each key of its entry."""
    found: dict[tuple[str, str], int] = {}
    for name, entry in root.value if isinstance(root, yaml.MappingNode) else ():
        found[name.value, ""] = name.start_mark.line + 1
        for key, _ in entry.value if isinstance(entry, yaml.MappingNode) else ():
            found[name.value, key.value] = key.start_mark.line + 1
    return found


def _entry_problems(name: object, entry: object) -> Iterator[tuple[object, str]]:
    """Yield what is wrong, each with the key that it is about or ""."""
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name):
        yield "", "is no name; allowed are a-z, 0-9 and - inside"
    elif len(name) > _NAME_LENGTH:
        yield "", f"is longer than {_NAME_LENGTH} characters"
    if not isinstance(entry, dict):
        yield "", f"must map keys to values; allowed are {', '.join(KEYS)}"
        return
    for key in entry:
        if key not in KEYS:
            yield key, f"unknown key {one_line(str(key), 80)!r}; allowed are {', '.join(KEYS)}"
    for key in ("task", "schedule"):
        if key not in entry:
            yield "", f"{key} is missing"
    for key, check in _CHECKS.items():
        if key in entry and (problem := check(entry[key])):
            yield key, f"{key}: {problem}"
    for problem in _option_problems(entry):
        yield "options", problem


def _option_problems(entry: Mapping[Any, Any]) -> Iterator[str]:
    options, task = entry.get("options", {}), entry.get("task")
    allowed = TASKS.get(task, ()) if isinstance(task, str) else ()
    if not isinstance(options, dict):
        yield f"options: {_shown(options)} is no mapping; allowed are {', '.join(allowed)}"
        return
    for name, value in options.items():
        if name not in allowed and allowed:
            yield f"options: {_shown(name)} is no option of {task}; allowed are {', '.join(allowed)}"
        elif type(value) is not bool:
            yield f"options: {name} is {_shown(value)}; allowed are true and false"


def _shown(value: object) -> str:
    return one_line(repr(value), 80)


def _one_of(allowed: tuple[str, ...]) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        return None if value in allowed else f"{_shown(value)} is not one of {', '.join(allowed)}"

    return check


def _within(least: int, most: int) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        fits = type(value) is int and least <= value <= most
        return None if fits else f"{_shown(value)} is no integer from {least} to {most}"

    return check


def _cron(value: object) -> str | None:
    if not isinstance(value, str):
        return f'{_shown(value)} is no text such as "*/5 * * * *"'
    try:
        parse_cron(value)
    except ValueError as exc:
        return one_line(str(exc))
    return None


def _time_zone(value: object) -> str | None:
    allowed = "allowed are names such as Etc/UTC and Europe/Moscow"
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_+/-]{1,64}", value) or value == "Local":
        return f"{_shown(value)} is no time zone; {allowed}"
    # Without a tz database, as in a slim image, the API server is the judge.
    known = zoneinfo.available_timezones()
    return f"{value!r} is not in the tz database; {allowed}" if known and value not in known else None


def _suspend(value: object) -> str | None:
    return None if value is None or type(value) is bool else f"{_shown(value)} is not true or false"


def _resources(value: object) -> str | None:
    allowed = "allowed are requests and limits, each with cpu and memory such as 25m and 64Mi"
    if not isinstance(value, dict) or set(value) != {"requests", "limits"}:
        return f"{_shown(value)}; {allowed}"
    for part in value.values():
        if not isinstance(part, dict) or set(part) != {"cpu", "memory"}:
            return f"{_shown(part)}; {allowed}"
    try:
        for name in ("cpu", "memory"):
            wanted, most = (parse_quantity(value[part][name]) for part in ("requests", "limits"))
            if not 0 < wanted <= most:
                return f"{name}: requests must be more than 0, and limits no less"
    except (TypeError, ValueError) as exc:
        return f"{one_line(str(exc))}; {allowed}, as texts"
    return None


def _env(value: object) -> str | None:
    fine = isinstance(value, dict) and all(
        name in OVERRIDABLE and isinstance(text, str) and text.strip() and text.isprintable()
        for name, text in value.items()
    )
    return None if fine else f"{_shown(value)}; allowed are texts for {', '.join(OVERRIDABLE)}"


_CHECKS: dict[str, Callable[[object], str | None]] = {
    "task": _one_of(tuple(TASKS)),
    "schedule": _cron,
    "time_zone": _time_zone,
    "concurrency": _one_of(CONCURRENCY),
    **{key: _within(*bounds) for key, bounds in _RANGES.items()},
    "suspend": _suspend,
    "resources": _resources,
    "env": _env,
}
