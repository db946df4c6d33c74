"""Read a message of the dead-letter queue: which task it is, why it is there, and whether it can run again.

A Selector says which messages a command means.

Anything may be in that queue, so nothing in a message is trusted and nothing makes reading it fail. What
a container put there tells its story in x-autolabs-* headers (jobs.container.settle), what the broker moved
there in x-last-death-* and x-death (https://www.rabbitmq.com/docs/dlx#effects).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from dispatcher.broker import delay_ladder, topology
from dispatcher.errors import InvalidTask, MalformedMessage
from dispatcher.failure_contract import Category, DeadLetterHeader
from dispatcher.ids import MAX_ID
from dispatcher.message.envelope import (
    FIRST_ERROR,
    Properties,
    TaskMessage,
    decode,
    header_time,
    is_short_text,
)
from dispatcher.tasks import accept_payload, lab_instance_id_of
from jobs.failures import Failure

#: Longest text that is kept, in characters; containers write no longer ones.
MAX_CHARS = 1000
#: Characters of a key that are shown.
SHOWN_KEY = 12
#: Characters of a key that name a message; fewer may mean another one tomorrow.
MIN_PREFIX = 6

#: The broker's word -> cause and category as a container writes them for the lab, and the sentence.
_BROKER_REASONS: dict[str, tuple[str, Category | None, str]] = {
    "delivery_limit": (
        Failure.CONTAINER_CRASHED.cause,
        Failure.CONTAINER_CRASHED.category,
        f"no container settled it within {topology.DELIVERY_LIMIT + 1} deliveries:"
        " containers crashed over it",
    ),
    "expired": (
        Failure.EXPIRED.cause,
        Failure.EXPIRED.category,
        "it expired in its queue before a container took it",
    ),
    "rejected": ("rejected", None, "whoever took it from its queue rejected it without a reason"),
    "maxlen": ("queue_full", None, "its queue was full"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """What is known of one message; texts are cut to MAX_CHARS and may quote anybody."""

    #: SHA-256 of body, task id and time of death, in hexadecimal digits.
    key: str
    #: None: the message has no readable id.
    task_id: str | None
    task_name: str | None
    lab_instance_id: int | None
    #: "container", "broker", or "unknown" for what somebody else put there.
    made_by: str
    reason: str
    category: str | None
    cause: str
    #: How often a container tried it, as far as is known.
    attempts: int | None
    first_error: str | None
    last_error: str | None
    #: The queue in which it was before.
    queue: str | None
    #: The task's own, without the delay of the ladder.
    routing_key: str
    died_at: datetime | None
    job: str | None
    pod: str | None
    #: Bytes of the body.
    size: int
    eta: datetime | None
    expires: datetime | None
    #: The reason why no container would perform it, however often it came; None for a task.
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Conditions that a message must fulfil together; of several ids any one. Without any: all."""

    #: Each a task id, or the first characters of a key.
    ids: tuple[str, ...] = ()
    lab: int | None = None
    category: str | None = None
    cause: str | None = None
    task: str | None = None

    def matches(self, letter: DeadLetter) -> bool:
        asked = (
            (self.lab, letter.lab_instance_id),
            (self.category, letter.category),
            (self.cause, letter.cause),
            (self.task, letter.task_name),
        )
        named = not self.ids or any(names(wanted, letter) for wanted in self.ids)
        return named and all(wanted is None or wanted == value for wanted, value in asked)


def names(wanted_id: str, letter: DeadLetter) -> bool:
    """Tell whether an id of a command line is this message's."""
    is_key = len(wanted_id) >= MIN_PREFIX and letter.key.startswith(wanted_id.lower())
    return wanted_id == letter.task_id or is_key


class _Story(NamedTuple):
    made_by: str
    reason: str
    category: str | None
    cause: str
    queue: str | None
    died_at: datetime | None


def read_letter(body: bytes, properties: Properties, routing_key: str | bytes) -> DeadLetter:
    """Return what is known of a message of the dead-letter queue, whatever it is."""
    headers = properties.headers or {}
    task, problem = read_task(body, properties)
    story = _story(headers)
    task_id = headers.get("id")
    reason = _text(headers.get(DeadLetterHeader.REASON)) if story.made_by == "container" else None
    died = "" if story.died_at is None else story.died_at.isoformat()
    digest = hashlib.sha256(body)
    digest.update(f"\0{task_id!r:.600}\0{died}".encode("utf-8", "backslashreplace"))
    lab = lab_instance_id_of(task.args, task.kwargs) if task else None
    return DeadLetter(
        key=digest.hexdigest(),
        task_id=str(task_id) if task_id and is_short_text(task_id) else None,
        task_name=_text(headers.get("task")) or _text(headers.get(DeadLetterHeader.TASK)),
        lab_instance_id=lab or _count(headers.get(DeadLetterHeader.LAB_INSTANCE_ID)) or None,
        made_by=story.made_by,
        reason=reason or story.reason,
        category=story.category,
        cause=story.cause,
        attempts=_attempts(headers),
        first_error=_text(headers.get(DeadLetterHeader.FIRST_ERROR)) or _text(headers.get(FIRST_ERROR)),
        last_error=_text(headers.get(DeadLetterHeader.LAST_ERROR)) if reason else story.reason,
        queue=story.queue,
        routing_key=delay_ladder.plain_routing_key(_text(routing_key) or ""),
        died_at=story.died_at,
        job=_text(headers.get(DeadLetterHeader.JOB)),
        pod=_text(headers.get(DeadLetterHeader.POD)),
        size=len(body),
        eta=task.eta if task else None,
        expires=task.expires if task else None,
        problem=problem,
    )


def read_task(body: bytes, properties: Properties) -> tuple[TaskMessage | None, str | None]:
    """Return the task in a message, if there is one, and why no container would perform it."""
    try:
        task = decode(body, properties)
    except MalformedMessage as exc:
        return None, str(exc)
    if task.unsupported:
        return task, f"it asks for {', '.join(task.unsupported)}, which is not supported"
    try:
        accept_payload(task.name, task.args, task.kwargs)
    except InvalidTask as exc:
        return task, str(exc)
    return task, None


def _story(headers: Mapping[Any, Any]) -> _Story:
    # A container takes x-last-death-* away (jobs.container.settle), so the broker came last where they are.
    if "x-last-death-reason" in headers or DeadLetterHeader.REASON not in headers:
        return _story_of_broker(headers)
    return _Story(
        "container",
        "the container said nothing",
        _text(headers.get(DeadLetterHeader.CATEGORY)),
        _text(headers.get(DeadLetterHeader.CAUSE)) or "unknown",
        _text(headers.get(DeadLetterHeader.QUEUE)),
        header_time(headers.get(DeadLetterHeader.DEAD_AT)),
    )


def _story_of_broker(headers: Mapping[Any, Any]) -> _Story:
    death = _last_death(headers)
    word = _text(headers.get("x-last-death-reason")) or _text(death.get("reason"))
    queue = _text(headers.get("x-last-death-queue")) or _text(death.get("queue"))
    if word is None:
        return _Story("unknown", "nothing says why it is here", None, "unknown", None, None)
    cause, found, sentence = _BROKER_REASONS.get(word, (word, None, f"the broker moved it here: {word}"))
    category = found.value if found else None
    return _Story("broker", sentence, category, cause, queue, header_time(death.get("time")))


def _last_death(headers: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return the newest entry of x-death; the ladder leaves older ones."""
    deaths = headers.get("x-death")
    tables = [death for death in deaths if isinstance(death, Mapping)] if isinstance(deaths, list) else []
    last = (headers.get("x-last-death-queue"), headers.get("x-last-death-reason"))
    for death in tables:
        if (death.get("queue"), death.get("reason")) == last:
            return death
    return tables[0] if tables else {}


def _attempts(headers: Mapping[Any, Any]) -> int | None:
    if (attempts := _count(headers.get(DeadLetterHeader.ATTEMPTS))) is not None:
        return attempts
    retries = _count(headers.get("retries"))
    return None if retries is None else retries + 1


def _count(value: object) -> int | None:
    # pika gives 64-bit integers as a subclass of int.
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return int(value) if 0 <= value <= MAX_ID else None


def _text(value: object) -> str | None:
    """Return any value as a text, None for nothing; pika gives what is not UTF-8 as bytes."""
    if value is None or value == "" or isinstance(value, (dict, list)):
        return None
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text[:MAX_CHARS]
