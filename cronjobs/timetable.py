"""Read the schedules strictly, from settings/schedules.yaml, for the CronJobs and `autolabs schedule`."""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timezone, tzinfo
from typing import Annotated, Any

import yaml

from cronjobs.cron import parse_cron
from dispatcher.errors import InvalidSettings
from dispatcher.quantities import parse_quantity
from dispatcher.wording import one_line
from jobs.config.settings_document import (
    FLAG,
    QUANTITY,
    Problem,
    Rule,
    in_words,
    mapping_of,
    one_of,
    parsed,
    problems_of,
    record,
    rules_of,
    whole,
)
from jobs.config.stored import DEFAULTS
from jobs.config.templates import MAX_DEPTH, nests_deeper

#: Key of the schedules in the bucket.
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
#: Settings of a container that may differ from the defaults; the others are secret.
OVERRIDABLE = ("S3_BUCKET", "KUBECONFIG_OBJECT", "LAB_NAMESPACE", "AMQP_HEARTBEAT_S")
#: A name of an entry; Kubernetes adds eleven characters for the name of a Job.
NAME = re.compile(r"(?=.{1,52}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?")


class InvalidSchedules(InvalidSettings):
    """Raised once with everything that is wrong in a document."""

    def __init__(self, source: str, problems: list[str]) -> None:
        super().__init__(problems)
        self.args = (f"{source} is not acceptable:\n  " + "\n  ".join(problems),)


def _check_zone(name: str) -> None:
    # Without a tz database, as in a slim image, the API server is the judge.
    known = zoneinfo.available_timezones()
    well_formed = re.fullmatch(r"[A-Za-z0-9_+/-]{1,64}", name) and name != "Local"
    if not well_formed or (known and name not in known):
        raise ValueError(f"{name!r} is not in the tz database; allowed are names such as {_ZONES}")


def _is_setting(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


_ZONES = "Etc/UTC and Europe/Moscow"
_ZONE = parsed(f"a name of the tz database, such as {_ZONES}", _check_zone)
_CRON = parsed('five cron fields or a macro, as text such as "*/5 * * * *" or @hourly', parse_cron)
_SUSPENDED = Rule(
    "true or false", {"type": ["boolean", "null"]}, lambda value: type(value) in (bool, type(None))
)
_PART = record({"cpu": QUANTITY, "memory": QUANTITY})
_RESOURCES = record({"requests": _PART, "limits": _PART})
_OPTIONS = mapping_of(one_of("dry_run", "force"), FLAG, "a mapping of dry_run and force to true or false")
_ENV = mapping_of(
    one_of(*OVERRIDABLE),
    Rule("a text of one line", {"type": "string", "minLength": 1}, _is_setting),
    f"a mapping of {', '.join(OVERRIDABLE)} to texts",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One entry; each field but the name is a key of it.

    Kubernetes looks every ten seconds, so no deadline is shorter: nothing would ever run.
    """

    name: str
    # The `#:` lines are what docs and the schema say of a key.
    #: What runs.
    task: Annotated[str, one_of(*TASKS)]
    #: When it comes.
    schedule: Annotated[str, _CRON]
    #: Whose clocks have the hours and days of the schedule.
    time_zone: Annotated[str, _ZONE] = "Etc/UTC"
    #: Whether a run is left out while the last goes on, begins beside it, or replaces it.
    concurrency: Annotated[str, one_of("Forbid", "Allow", "Replace")] = "Forbid"
    #: Seconds by which a run may begin late, after the controller was away.
    starting_deadline_s: Annotated[int, whole(10, 604_800)] = 60
    #: Seconds a run may take.
    deadline_s: Annotated[int, whole(10, 86_400)] = 240
    #: Jobs that are kept of runs that succeeded.
    successful_history: Annotated[int, whole(0, 100)] = 3
    #: Jobs that are kept of runs that failed.
    failed_history: Annotated[int, whole(0, 100)] = 3
    #: Seconds for which a Job is kept at most.
    ttl_s: Annotated[int, whole(60, 604_800)] = 3600
    #: Whether no run begins; left out: as it is in the cluster.
    suspend: Annotated[bool | None, _SUSPENDED] = None
    #: Options of the task; the outbox has no force.
    options: Annotated[Mapping[str, bool], _OPTIONS] = field(default_factory=dict)
    #: Requests of the container, and limits no less than these.
    resources: Annotated[Mapping[str, Mapping[str, str]], _RESOURCES] = field(
        default_factory=lambda: {
            "requests": {"cpu": "25m", "memory": "64Mi"},
            "limits": {"cpu": "1", "memory": "256Mi"},
        }
    )
    #: Settings of the container that differ from the defaults.
    env: Annotated[Mapping[str, str], _ENV] = field(default_factory=dict)

    @property
    def arguments(self) -> list[str]:
        return [option_word(name) for name, wanted in self.options.items() if wanted]

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Iterator[Problem]:
        """Yield options that the task does not have, and requests above limits."""
        allowed = TASKS.get(values.get("task", ""))
        for name in values.get("options", {}) if allowed else ():
            if allowed and name not in allowed:
                text = f"is no option of {values['task']}; allowed are {', '.join(allowed)}"
                yield ("options", name), text
        if resources := values.get("resources"):
            for name in _PART.schema["properties"]:
                requests, limits = resources["requests"][name], resources["limits"][name]
                if parse_quantity(requests) > parse_quantity(limits):
                    yield ("resources", "limits", name), f"{limits} is less than the request, {requests}"


def option_word(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def parse_schedules(content: bytes, source: str = SCHEDULES) -> dict[str, Schedule]:
    """Return the entries by name. Raises InvalidSchedules, which lists all problems."""
    try:
        text = content.decode()
        problem = _problem_of_form(text)
        root = None if problem else yaml.compose(text, Loader=yaml.SafeLoader)
        document = None if problem else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, KeyError, AttributeError) as exc:
        hint = '; a schedule needs quotes: "*/5 * * * *"' if "alias" in str(exc) else ""
        raise InvalidSchedules(source, [f"no YAML: {one_line(str(exc))}{hint}"]) from exc
    if problem:
        raise InvalidSchedules(source, [problem])
    if not isinstance(document, dict) or not document:
        raise InvalidSchedules(source, ["must map names to entries, at least one"])
    found = [problem for name, entry in document.items() for problem in _entry_problems(name, entry)]
    if problems := [*(f"{name}: is there twice" for name in _twice(root)), *in_words(found, root)]:
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


def _problem_of_form(text: str) -> str | None:
    if nests_deeper(text, MAX_DEPTH):
        return f"is nested deeper than {MAX_DEPTH} levels"
    events = yaml.parse(text, Loader=yaml.SafeLoader)
    # A change of one entry would change another, and seven levels of aliases take seconds to read.
    if any(getattr(event, "anchor", None) is not None for event in events):
        return "must have no anchors and aliases (& and *)"
    return None


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


def _entry_problems(name: object, entry: object) -> Iterator[Problem]:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        yield (name,), "is no name; allowed are a-z, 0-9 and - inside, 52 characters at most"
    if isinstance(entry, dict):
        yield from (((name, *keys), text) for keys, text in problems_of(Schedule, entry))
    else:
        yield (name,), f"must map keys to values; allowed are {', '.join(rules_of(Schedule))}"
