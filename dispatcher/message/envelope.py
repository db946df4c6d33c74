"""Encode what a Celery worker accepts, and decode what `send_task` emits: message protocol v2.

Format: https://docs.celeryq.dev/en/stable/internals/protocol.html; where that page and
celery/app/amqp.py (as_task_v2) differ, such as timelimit being [hard, soft], the code is followed.
"""

from __future__ import annotations

import json
import os
import re
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any, Protocol

from dispatcher.errors import MalformedMessage
from dispatcher.message.body import MAX_BODY_BYTES, check_form, decompress, unwrap
from dispatcher.text import safe_repr

#: Header with the publish time (ISO 8601, microseconds); AMQP's own timestamp has whole seconds.
PUBLISHED_AT = "autolabs_published_at"
#: Header with what went wrong in the first attempt of a task that is tried again.
FIRST_ERROR = "autolabs_first_error"
#: Longest first error that a retry carries, in characters.
_MAX_ERROR = 1000

_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode

#: Keys of the body's third element, the tasks to publish after this one.
_FOLLOW_UPS = ("callbacks", "errbacks", "chain", "chord")
_MAX_COUNT = 1_000_000
_DIGITS = re.compile("[0-9]{1,7}")
#: Longest time limit in seconds, about three years; the bound keeps infinity and NaN out too.
MAX_TIMELIMIT_S = 10**8
#: About 8.5 years, as the longest delay.
MAX_EXPIRATION_MS = 2**28 * 1000


class Properties(Protocol):
    """The AMQP basic properties that `decode` reads; pika.BasicProperties has them.

    What is not UTF-8 pika gives as bytes, in spite of its own types: texts, and the names of headers.
    """

    headers: dict[str, Any] | None
    content_type: str | None
    content_encoding: str | None
    priority: int | None
    reply_to: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskMessage:
    """One task as it travels: what to run, under which id, and how often it was tried."""

    name: str
    id: str
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    #: Attempts before this one; a retry keeps the id and adds one.
    retries: int = 0
    eta: datetime | None = None
    expires: datetime | None = None
    #: 0 to 255. Our queues are one per priority, so it orders nothing here; it is handed on.
    priority: int = 0
    #: Seconds, hard and soft. A Celery worker keeps them; a container has limits of its own.
    timelimit: tuple[float | None, float | None] = (None, None)
    #: True: the sender wants no result stored.
    ignore_result: bool = False
    root_id: str | None = None
    parent_id: str | None = None
    group: str | None = None
    group_index: int | None = None
    #: Another name for logs and monitors.
    shadow: str | None = None
    #: Who published it, as gen<pid>@<host>; None: this process.
    origin: str | None = None
    reply_to: str | None = None
    replaced_task_nesting: int = 0
    stamps: dict[str, Any] = field(default_factory=dict)
    published_at: datetime | None = None
    #: What went wrong in the first attempt; None in that one.
    first_error: str | None = None
    #: What the sender asks for after this task and nobody here does: chain, chord, callbacks, errbacks,
    #: each with its content, so that a task that waits or comes back does not forget it.
    unsupported: dict[str, Any] = field(default_factory=dict)


def new_task_id() -> str:
    return str(uuid.uuid4())


def header_time(value: object) -> datetime | None:
    """Return a time of a header in UTC, as one without an offset counts; None for all that is no time."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if not isinstance(moment, datetime):
            return None
        # PostgreSQL refuses offsets beyond 16 hours, which Python lets pass.
        return moment.astimezone(timezone.utc) if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    except (ValueError, OverflowError):  # a time that nobody can have written in earnest
        return None


def encode(message: TaskMessage) -> tuple[bytes, dict[str, Any]]:
    """Return the body and the AMQP properties, as keyword arguments of pika.BasicProperties."""
    embed = {**dict.fromkeys(_FOLLOW_UPS), **message.unsupported}
    # Of a lone surrogate, which JSON can say and UTF-8 cannot, this makes the escape that it came as.
    body = _to_json([message.args, message.kwargs, embed]).encode(errors="backslashreplace")
    now = datetime.now(timezone.utc)
    properties: dict[str, Any] = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "headers": _headers(message, now),
        "correlation_id": message.id,
        "delivery_mode": 2,
        # Explicit, as kombu does: a missing priority counts as 4 on quorum queues of RabbitMQ 4.3.
        "priority": message.priority,
    }
    if message.reply_to:
        properties["reply_to"] = message.reply_to
    # A rung of the delay ladder would hand a message on too early for its own expiration.
    if message.expires and not is_due_later(message, now):
        expiration_ms = max(0, round((message.expires - now).total_seconds() * 1000))
        # RabbitMQ closes the channel over one of about 73 years; the header says it as well.
        if expiration_ms <= MAX_EXPIRATION_MS:
            properties["expiration"] = str(expiration_ms)
    return body, properties


def is_due_later(message: TaskMessage, now: datetime) -> bool:
    return message.eta is not None and message.eta > now


def _headers(message: TaskMessage, now: datetime) -> dict[str, Any]:
    return {
        "lang": "py",
        "task": message.name,
        "id": message.id,
        "shadow": message.shadow,
        "eta": message.eta.isoformat() if message.eta else None,
        "expires": message.expires.isoformat() if message.expires else None,
        "group": message.group,
        "group_index": message.group_index,
        "retries": message.retries,
        "timelimit": list(message.timelimit),
        "root_id": message.root_id or message.id,
        "parent_id": message.parent_id,
        "argsrepr": safe_repr(tuple(message.args)),
        "kwargsrepr": safe_repr(message.kwargs),
        "origin": message.origin or _origin(os.getpid()),
        "ignore_result": message.ignore_result,
        "replaced_task_nesting": message.replaced_task_nesting,
        "stamped_headers": list(message.stamps) or None,
        "stamps": message.stamps,
        PUBLISHED_AT: (message.published_at or now).isoformat(),
        **({FIRST_ERROR: message.first_error[:_MAX_ERROR]} if message.first_error else {}),
    }


@lru_cache(maxsize=1)
def _origin(pid: int) -> str:
    return f"gen{pid}@{socket.gethostname()}"


def decode(body: bytes, properties: Properties) -> TaskMessage:
    """Return the task in a delivery. Raises MalformedMessage if it is no task message of protocol 1 or 2.

    Unknown headers are ignored and null ones count as absent, as a Celery worker does. An odd header on which
    nothing depends here is left out.
    """
    headers: Mapping[str, Any] = properties.headers or {}
    content: Any = None
    if headers.get("task") is None and body.lstrip()[:1] == b"{":
        from dispatcher.message.protocol_1 import as_protocol_2  # which no message of ours needs

        headers, content = as_protocol_2(headers, _read_json(body, headers, properties))
    name = _text(headers, "task")
    task_id = _task_id(headers, properties)
    args, kwargs, embed = _parts(_read_json(body, headers, properties) if content is None else content)
    return TaskMessage(
        name=name,
        id=task_id,
        args=args,
        kwargs=kwargs,
        retries=_retries(headers),
        eta=_time(headers, "eta"),
        expires=_time(headers, "expires"),
        priority=properties.priority or 0,
        timelimit=_timelimit(headers),
        ignore_result=headers.get("ignore_result") is True,
        root_id=_note(headers, "root_id"),
        parent_id=_note(headers, "parent_id"),
        group=_note(headers, "group"),
        group_index=_count(headers, "group_index"),
        shadow=_note(headers, "shadow"),
        origin=_note(headers, "origin"),
        reply_to=properties.reply_to if is_short_text(properties.reply_to) else None,
        replaced_task_nesting=_count(headers, "replaced_task_nesting") or 0,
        stamps=_stamps(headers),
        published_at=header_time(_note(headers, PUBLISHED_AT)),
        first_error=error[:_MAX_ERROR] if isinstance(error := headers.get(FIRST_ERROR), str) else None,
        unsupported={key: embed[key] for key in _FOLLOW_UPS if embed.get(key)},
    )


def next_attempt(message: TaskMessage, *, error: str | None = None) -> TaskMessage:
    """Return the same task, under the same id, for one more try; `error` ended this one."""
    first_error = message.first_error or error
    return replace(message, retries=message.retries + 1, eta=None, first_error=first_error)


def is_short_text(value: object) -> bool:
    """Tell whether a value can be a task id: AMQP's correlation_id holds 255 bytes."""
    return isinstance(value, str) and value.isprintable() and len(value.encode()) <= 255


def _text(headers: Mapping[str, Any], key: str) -> str:
    value = _optional_text(headers, key)
    if not value:
        raise MalformedMessage(f"header {key!r} is missing: not a Celery protocol v2 task message")
    return value


def _optional_text(headers: Mapping[str, Any], key: str) -> str | None:
    value = headers.get(key)
    if value is None:
        return None
    if not is_short_text(value):
        raise MalformedMessage(f"header {key!r} is not a printable text of at most 255 bytes")
    return str(value)


def _note(headers: Mapping[str, Any], key: str) -> str | None:
    """Return a text that nothing depends on; an odd one is no reason to refuse the task."""
    value = headers.get(key)
    return value if is_short_text(value) else None


def _task_id(headers: Mapping[str, Any], properties: Properties) -> str:
    """Return the header `id`; other languages' publishers name the task in the property alone."""
    correlation_id = getattr(properties, "correlation_id", None)
    if headers.get("id") is None and correlation_id and is_short_text(correlation_id):
        return str(correlation_id)
    return _text(headers, "id")


def _retries(headers: Mapping[str, Any]) -> int:
    value = headers.get("retries")
    if value is None:
        return 0
    # PHP and JavaScript publishers write numbers as texts, and as floats.
    if (isinstance(value, str) and _DIGITS.fullmatch(value)) or (
        isinstance(value, float) and value.is_integer()
    ):
        value = int(value)
    if not _is_count(value):
        raise MalformedMessage(f"header 'retries' is not a count from 0 to {_MAX_COUNT}")
    return int(value)


def _count(headers: Mapping[str, Any], key: str) -> int | None:
    """Return a count that nothing depends on."""
    value = headers.get(key)
    return int(value) if value is not None and _is_count(value) else None


def _is_count(value: Any) -> bool:
    return _is_integer(value) and 0 <= value <= _MAX_COUNT


def _is_integer(value: object) -> bool:
    # pika gives 64-bit integers, and floats, as a subclass of int.
    return isinstance(value, int) and not isinstance(value, bool)


def _timelimit(headers: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return what a Celery worker would keep to; a container has limits of its own and needs none."""
    limits = headers.get("timelimit")
    if not isinstance(limits, list) or len(limits) != 2:
        return None, None
    hard, soft = (limit if _is_timelimit(limit) else None for limit in limits)
    return hard, soft


def _is_timelimit(limit: Any) -> bool:
    return (_is_integer(limit) or isinstance(limit, float)) and 0 <= limit <= MAX_TIMELIMIT_S


def _stamps(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stamps as texts and lists of texts, which can be published again as they are."""
    stamps = headers.get("stamps")
    if not isinstance(stamps, Mapping):
        return {}
    return {
        key: [str(part) for part in value] if isinstance(value, list) else str(value)
        for key, value in stamps.items()
        if isinstance(key, str)
    }


def _time(headers: Mapping[str, Any], key: str) -> datetime | None:
    value = _optional_text(headers, key)
    moment = header_time(value)
    if value is not None and moment is None:
        raise MalformedMessage(f"header {key!r} is not an ISO 8601 time")
    return moment


def _read_json(body: bytes, headers: Mapping[str, Any], properties: Properties) -> Any:
    check_form(properties.content_type, properties.content_encoding)
    if len(body) > MAX_BODY_BYTES:
        raise MalformedMessage(f"body has {len(body)} bytes; at most {MAX_BODY_BYTES} are allowed")
    try:
        # Some publishers begin UTF-8 with a byte order mark.
        text = decompress(body, headers.get("compression")).decode().removeprefix("\ufeff")
        return json.loads(text, object_hook=unwrap)
    # RecursionError: json nests one Python frame per bracket.
    except (UnicodeDecodeError, LookupError, ValueError, RecursionError) as exc:
        raise MalformedMessage(f"body is not JSON: {exc}"[:300]) from exc


def _parts(content: Any) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    if not isinstance(content, list) or len(content) != 3:
        raise MalformedMessage("body is not the three-element [args, kwargs, embed]")
    args, kwargs, embed = content
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise MalformedMessage("body: args must be a list and kwargs an object")
    return args, kwargs, embed if isinstance(embed, dict) else {}
