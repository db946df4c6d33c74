"""What `autolabs dlq show` says of a message beyond the list: properties, headers and arguments."""

from __future__ import annotations

import json
from typing import Any

from console.dlq import output
from console.dlq.letters import read_task
from console.dlq.queue import Found, look_through
from console.dlq.selection import Selector
from dispatcher.plain import plain_json, plain_text
from dispatcher.redaction import scrubbed_values
from dispatcher.settings import BrokerSettings
from dispatcher.terminal import fields

#: Messages under one id: a task may die more than once.
_MAX_MESSAGES = 20
#: Bytes of a body that is no task.
_MAX_BODY = 2000


def details(settings: BrokerSettings, selector: Selector) -> list[dict[str, Any]]:
    """Return what is known of the messages that a selector means, in types of JSON."""
    known: list[dict[str, Any]] = []

    def look(found: Found) -> bool:
        if selector.matches(found.letter) and len(known) < _MAX_MESSAGES:
            known.append(_details(found))
        return False

    look_through(settings, look)
    return known


def print_details(known: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print them."""
    if as_json:
        print(json.dumps(known, indent=2))
    else:
        print("\n\n".join(fields(values) for values in known))


def _details(found: Found) -> dict[str, Any]:
    task, _ = read_task(found.body, found.properties)
    if task is None:
        content: dict[str, Any] = {"body": scrubbed_values(plain_text(found.body[:_MAX_BODY]))}
    else:
        content = {
            "args": scrubbed_values(plain_json(task.args)),
            "kwargs": scrubbed_values(plain_json(task.kwargs)),
        }
    return {
        **output.fields(found.letter),
        **content,
        "content_type": plain_text(found.properties.content_type),
        "content_encoding": plain_text(found.properties.content_encoding),
        "headers": scrubbed_values(plain_json(found.properties.headers or {})),
    }
