"""Read task messages of Celery's protocol 1, which publishers in Go, PHP and JavaScript still write.

All of the task is in the body, an object, and nothing in the headers; a worker of Celery 5 reads it as well.
Format: https://docs.celeryq.dev/en/stable/internals/protocol.html#version-1; envelope.decode asks here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Keys of the body that are headers of protocol 2, and what each is called there.
_HEADERS = {
    "task": "task",
    "id": "id",
    "retries": "retries",
    "eta": "eta",
    "expires": "expires",
    "timelimit": "timelimit",
    "taskset": "group",
    "group": "group",
    "group_index": "group_index",
}
_FOLLOW_UPS = ("callbacks", "errbacks", "chain", "chord")


def as_protocol_2(headers: Mapping[str, Any], content: Any) -> tuple[Mapping[str, Any], Any]:
    """Return headers and body as protocol 2 has them; what is no task of protocol 1 stays as it is."""
    if not isinstance(content, dict) or content.get("task") is None:
        return headers, content
    named = {header: content[key] for key, header in _HEADERS.items() if content.get(key) is not None}
    args, kwargs = content.get("args"), content.get("kwargs")
    body = [
        [] if args is None else args,
        {} if kwargs is None else kwargs,
        {key: content.get(key) for key in _FOLLOW_UPS},
    ]
    return {**headers, **named}, body
