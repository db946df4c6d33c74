"""Celery message protocol v2: encode what a Celery worker accepts, decode what `send_task` emits.

Format: https://docs.celeryq.dev/en/stable/internals/protocol.html; where that page and
celery/app/amqp.py (as_task_v2) differ, such as timelimit being [hard, soft], the code is followed.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import json
import os
import socket
import uuid
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Protocol

from dispatcher.errors import MalformedMessage

#: Header with the publish time (ISO 8601, microseconds); AMQP's own timestamp has whole seconds.
PUBLISHED_AT = "autolabs_published_at"

#: Keys of the body's third element, the tasks to publish after this one.
_FOLLOW_UPS = ("callbacks", "errbacks", "chain", "chord")

#: Bytes. A task of ours has a few hundred; the limit keeps a hostile body out of a 256 MiB container.
MAX_BODY_BYTES = 1024 * 1024


class Properties(Protocol):
    """The AMQP basic properties that `decode` reads; pika.BasicProperties has them."""

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
    root_id: str | None = None
    parent_id: str | None = None
    published_at: datetime | None = None
    #: What the sender asks for after this task and nobody here does: chain, chord, callbacks, errbacks,
    #: each with its content, so that a task that waits or comes back does not forget it.
    unsupported: dict[str, Any] = field(default_factory=dict)


def new_task_id() -> str:
    """Return a random id of the form Celery uses."""
    return str(uuid.uuid4())


def encode(message: TaskMessage) -> tuple[bytes, dict[str, Any]]:
    """Return the body and the headers; the caller sets the properties (see `properties`)."""
    embed = {**dict.fromkeys(_FOLLOW_UPS), **message.unsupported}
    body = json.dumps([message.args, message.kwargs, embed], separators=(",", ":")).encode()
    headers: dict[str, Any] = {
        "lang": "py",
        "task": message.name,
        "id": message.id,
        "shadow": None,
        "eta": message.eta.isoformat() if message.eta else None,
        "expires": message.expires.isoformat() if message.expires else None,
        "group": None,
        "group_index": None,
        "retries": message.retries,
        "timelimit": [None, None],
        "root_id": message.root_id or message.id,
        "parent_id": message.parent_id,
        "argsrepr": _shortened(repr(tuple(message.args))),
        "kwargsrepr": _shortened(repr(message.kwargs)),
        "origin": f"gen{os.getpid()}@{socket.gethostname()}",
        "ignore_result": True,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
        PUBLISHED_AT: (message.published_at or datetime.now(timezone.utc)).isoformat(),
    }
    return body, headers


def properties(message: TaskMessage, headers: dict[str, Any]) -> dict[str, Any]:
    """Return the AMQP basic properties as keyword arguments of pika.BasicProperties."""
    return {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "headers": headers,
        "correlation_id": message.id,
        "delivery_mode": 2,
        # Explicit, as kombu does: a missing priority counts as 4 on quorum queues of RabbitMQ 4.3.
        "priority": 0,
    }


def _shortened(text: str) -> str:
    return text if len(text) <= 1024 else text[:1021] + "..."


def decode(body: bytes, properties: Properties) -> TaskMessage:
    """Return the task in a delivery.

    Unknown headers are ignored and null ones count as absent, as a Celery worker does.

    Raises:
        MalformedMessage: it is not a protocol v2 task message.
    """
    headers = properties.headers or {}
    name = _text(headers, "task")
    task_id = _text(headers, "id")
    args, kwargs, embed = _decode_body(body, headers, properties.content_type, properties.content_encoding)
    retries = headers.get("retries") or 0
    if type(retries) is not int or not 0 <= retries <= 1_000_000:
        raise MalformedMessage("header 'retries' is not a count")
    return TaskMessage(
        name=name,
        id=task_id,
        args=args,
        kwargs=kwargs,
        retries=retries,
        eta=_time(headers, "eta"),
        expires=_time(headers, "expires"),
        root_id=_optional_text(headers, "root_id"),
        parent_id=_optional_text(headers, "parent_id"),
        published_at=_time(headers, PUBLISHED_AT),
        unsupported={key: embed[key] for key in _FOLLOW_UPS if embed.get(key)},
    )


def next_attempt(message: TaskMessage) -> TaskMessage:
    """Return the same task, under the same id, for one more try."""
    return replace(message, retries=message.retries + 1, eta=None)


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


def _time(headers: Mapping[str, Any], key: str) -> datetime | None:
    value = _optional_text(headers, key)
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            return moment.replace(tzinfo=timezone.utc)
        # PostgreSQL refuses offsets beyond 16 hours, which Python lets pass.
        return moment.astimezone(timezone.utc)
    except (ValueError, OverflowError) as exc:
        raise MalformedMessage(f"header {key!r} is not an ISO 8601 time") from exc


def _decode_body(
    body: bytes, headers: Mapping[str, Any], content_type: str | None, content_encoding: str | None
) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    if content_type != "application/json":
        raise MalformedMessage(f"content type {content_type!r} is refused; only application/json")
    try:
        text = _decompressed(body, headers.get("compression")).decode(content_encoding or "utf-8")
        content = json.loads(text, object_hook=_plain)
    # RecursionError: json nests one Python frame per bracket.
    except (UnicodeDecodeError, LookupError, ValueError, RecursionError) as exc:
        raise MalformedMessage(f"body is not JSON: {exc}"[:300]) from exc
    if not isinstance(content, list) or len(content) != 3:
        raise MalformedMessage("body is not the three-element [args, kwargs, embed]")
    args, kwargs, embed = content
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise MalformedMessage("body: args must be a list and kwargs an object")
    return args, kwargs, embed if isinstance(embed, dict) else {}


def _decompressed(body: bytes, compression: object) -> bytes:
    if len(body) > MAX_BODY_BYTES:
        raise MalformedMessage(f"body has {len(body)} bytes; at most {MAX_BODY_BYTES} are allowed")
    if compression is None:
        return body
    opener = _DECOMPRESSORS.get(str(compression))
    if opener is None:
        raise MalformedMessage(f"compression {str(compression)[:60]!r} is not supported")
    try:
        plain = opener(body)
    except (zlib.error, OSError, ValueError, EOFError) as exc:
        raise MalformedMessage(f"body cannot be decompressed: {exc}") from exc
    if len(plain) > MAX_BODY_BYTES:
        raise MalformedMessage(f"decompressed body has more than {MAX_BODY_BYTES} bytes")
    return plain


# kombu's names (kombu/compression.py): its "gzip" is a bare zlib stream. One byte over the limit is
# enough to notice a bomb without unpacking it.
_DECOMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "application/x-gzip": lambda data: zlib.decompressobj().decompress(data, MAX_BODY_BYTES + 1),
    "application/x-bz2": lambda data: bz2.BZ2Decompressor().decompress(data, MAX_BODY_BYTES + 1),
}


def _plain(value: dict[str, Any]) -> Any:
    """Undo kombu's wrappers for what JSON cannot say (kombu/utils/json.py), to plain JSON types."""
    if "__type__" not in value:
        return value
    kind, inner = value["__type__"], value.get("__value__")
    if kind in ("datetime", "date", "time", "decimal", "bytes") and isinstance(inner, str):
        return inner
    if kind == "uuid" and isinstance(inner, dict) and isinstance(inner.get("hex"), str):
        return inner["hex"]
    if kind == "base64" and isinstance(inner, str):
        try:
            return base64.b64decode(inner, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as exc:
            raise ValueError("a base64 value does not hold text") from exc
    raise ValueError(f"unknown wrapped type {str(kind)[:40]!r}")
