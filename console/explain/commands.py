"""Print what happened to a lab, as a page for people or an object for programs: `autolabs explain`."""

from __future__ import annotations

import argparse
import enum
import json
import os
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from console.explain.explanation import Explanation, awaited, explain
from console.explain.facts import LabFacts
from console.explain.progress import Actor, queue_of
from dispatcher.errors import needs_extra
from dispatcher.settings import BrokerSettings, Environment, database_url, read_settings
from dispatcher.wording import ago, clock

WIDTH = 110
_LABEL = 15
_ACTORS = {
    Actor.TEACHER: "the teacher",
    Actor.ADMINISTRATOR: "the administrator",
    Actor.BACKEND: "the backend (whoever writes the labs' rows and publishes their tasks)",
    Actor.NOBODY: "nobody",
}


def run(arguments: argparse.Namespace) -> int:
    """Tell what happened to a lab, who must act, and what happens next.

    LAB is the lab's id in lab_instances, the id of one of its tasks, or the name of its Pod. Nothing is
    changed. 1: nothing is known of it. Settings: DATABASE_URL; with AMQP_URL also what waits in the queue
    of a lab that waits.
    """
    url, broker = read_settings(os.environ, _settings)
    facts = _read(url, broker, arguments.lab)
    found = explain(facts)
    print(json.dumps(make_object(facts, found), indent=2) if arguments.json else make_page(facts, found))
    return 0


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "lab", metavar="LAB", help="the lab's id, a task's id, or a name like lab-instance-17-…"
    )
    parser.add_argument("--json", action="store_true", help="print facts and findings as a JSON object")


def make_page(facts: LabFacts, found: Explanation) -> str:
    """Return the page for a terminal; times are UTC."""
    lines = [found.headline, ""]
    lines += _section("what happened", _timeline(facts, found))
    if found.why:
        marks = ", ".join(mark for mark in (found.why.category, found.why.cause) if mark)
        lines += _section("why", [found.why.sentence, *([f"[{marks}]"] if marks else [])])
    lines += _section("seen last", found.seen)
    lines += _section("who must act", [_ACTORS[found.who]])
    lines += _section("told", found.told)
    end = "" if found.next.endswith("?") else "."
    lines += _section("next", [f"{found.next[:1].upper()}{found.next[1:]}{end}"])
    lines += _section("run", found.commands, wrap=False)
    return "\n".join(lines)


def make_object(facts: LabFacts, found: Explanation) -> dict[str, Any]:
    """Return facts and findings with stable keys; times are ISO 8601."""
    return dict(_plain({"facts": asdict(facts), "findings": asdict(found)}))


def _settings(env: Environment) -> tuple[str, BrokerSettings | None]:
    """Return the database, and the broker if there is an AMQP_URL: without it no queue is looked at."""
    return database_url(env), BrokerSettings.from_environment(env) if env.find("AMQP_URL") else None


def _read(url: str, broker: BrokerSettings | None, given: str) -> LabFacts:
    with needs_extra("db"):
        from console.explain.reading import look_at_queue, read_lab_facts
        from dispatcher.engine import open_engine

    with open_engine(url, application_name="autolabs-explain", statement_timeout_s=10) as engine:
        facts = read_lab_facts(engine, given)
    operation = awaited(facts)
    if broker is None or operation is None:
        return facts
    return replace(facts, queue=look_at_queue(broker, queue_of(operation)))


def _timeline(facts: LabFacts, found: Explanation) -> Iterator[str]:
    for entry in found.timeline:
        if entry.at is None:
            yield f".. {entry.text}"
        else:
            yield f"{clock(facts.now, entry.at)} ({ago(facts.now, entry.at)})  {entry.text}"


def _section(label: str, texts: Iterable[str], *, wrap: bool = True) -> Iterator[str]:
    """Return the lines of a section, the label in front of the first; nothing for no texts."""
    head = f"{label}:"
    # A name that is broken cannot be copied; `one_line` bounds it.
    wrapper = textwrap.TextWrapper(
        WIDTH - _LABEL, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )
    for text in texts:
        for part in (wrapper.wrap(text) if wrap else [text]) or [""]:
            yield f"{head:{_LABEL}}{part}".rstrip()
            head = ""


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
