"""The command `autolabs explain LAB`."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dispatcher.errors import needs_extra
from dispatcher.settings import BrokerSettings, Environment, database_url, read_settings

if TYPE_CHECKING:
    from console.explain.facts import LabFacts


@dataclass(frozen=True, slots=True)
class ExplainSettings:
    """Where to look."""

    database_url: str = field(repr=False)
    #: None: no AMQP_URL is set, and queues are not looked at.
    broker: BrokerSettings | None

    @classmethod
    def from_environment(cls, env: Environment) -> ExplainSettings:
        """Read DATABASE_URL and, if there is one, AMQP_URL."""
        broker = BrokerSettings.from_environment(env) if env.find("AMQP_URL") else None
        return cls(database_url(env), broker)


def explain(arguments: argparse.Namespace) -> int:
    """Tell what happened to a lab, who must act, and what happens next.

    LAB is the lab's id in lab_instances, the id of one of its tasks, or the name of its Pod. Nothing is
    changed. 1: nothing is known of it. Settings: DATABASE_URL; with AMQP_URL also what waits in the queue
    of a lab that waits.
    """
    from console.explain import explanation
    from console.explain.text import make_object, make_page

    settings = read_settings(os.environ, ExplainSettings.from_environment)
    facts = _read(settings, arguments.lab)
    found = explanation.explain(facts)
    print(json.dumps(make_object(facts, found), indent=2) if arguments.json else make_page(facts, found))
    return 0


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "lab", metavar="LAB", help="the lab's id, a task's id, or a name like lab-instance-17-…"
    )
    parser.add_argument("--json", action="store_true", help="print facts and findings as a JSON object")


def _read(settings: ExplainSettings, given: str) -> LabFacts:
    from console.explain.explanation import awaited
    from console.explain.progress import queue_of

    with needs_extra("db"):
        from console.explain.reading import read_lab_facts
        from dispatcher.engine import open_engine

    url, name = settings.database_url, "autolabs-explain"
    with open_engine(url, application_name=name, statement_timeout_s=10) as engine:
        facts = read_lab_facts(engine, given)
    operation = awaited(facts)
    if settings.broker is None or operation is None:
        return facts
    from console.explain.queue import look_at_queue

    return replace(facts, queue=look_at_queue(settings.broker, queue_of(operation)))
