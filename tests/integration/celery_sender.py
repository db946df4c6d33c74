"""A backend's Celery app, run by tests/support/broker/celery_versions.py in a process of its own.

Each line of its input is a JSON object: the URL of a broker, arguments of celery_config() and calls by name.
An app of its own makes them one after the other, and a line says what came of them. A call is the keyword
arguments of `send_task`; `how` names another of WAYS, `eta_in` gives an eta in seconds from now.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date, datetime, timedelta, timezone
from datetime import time as time_of_day
from decimal import Decimal
from typing import Any

from celery import Celery, chain, chord, group
from kombu import pools

from dispatcher import celery_config, tasks

#: What JSON has no words for; kombu wraps each.
VALUES = {
    "uuid": uuid.UUID(int=5),
    "datetime": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
    "date": date(2026, 1, 2),
    "time": time_of_day(3, 4, 5),
    "decimal": Decimal("1.50"),
    "bytes": b"text",
    "not UTF-8": b"\xff\x00",
}


def send_task(app: Celery, *, eta_in: float | None = None, **call: Any) -> str:
    if eta_in is not None:
        call["eta"] = datetime.now(timezone.utc) + timedelta(seconds=eta_in)
    return str(app.send_task(**call).id)


def send_value(app: Celery, *, value: str) -> str:
    return str(app.send_task(tasks.CREATE_LAB_POD, args=[VALUES[value]]).id)


def send_chain(app: Celery, *, first: str, then: str) -> str:
    # The result of a chain is its last one's; the first has its id.
    result = chain(app.signature(first), app.signature(then)).apply_async()
    return str(result.parent.id)


def send_group(app: Celery, *, names: list[str]) -> list[str]:
    return [str(result.id) for result in group(app.signature(name) for name in names).apply_async()]


def send_chord(app: Celery, *, names: list[str], body: str) -> list[str]:
    result = chord([app.signature(name) for name in names])(app.signature(body))
    return [str(part.id) for part in result.parent]


def send_link(app: Celery, *, name: str, link: str) -> str:
    return str(app.signature(name, link=app.signature(link)).apply_async().id)


def send_link_error(app: Celery, *, name: str, link_error: str) -> str:
    signature = app.signature(name)
    signature.link_error(app.signature(link_error))
    return str(signature.apply_async().id)


def call_task(app: Celery, **call: Any) -> dict[str, Any]:
    """Send a task and wait for its end."""
    return look_up(app, task_id=app.send_task(**call).id)


def look_up(app: Celery, *, task_id: str) -> dict[str, Any]:
    found = app.AsyncResult(task_id)
    value = found.get(timeout=30, propagate=False)
    shown = {"exception": repr(value)} if isinstance(value, BaseException) else {"result": value}
    return {"id": task_id, "state": found.state, **shown}


def look_at_state(app: Celery, *, task_id: str) -> str:
    return str(app.AsyncResult(task_id).state)


WAYS: dict[str, Callable[..., Any]] = {
    "send_task": send_task,
    "value": send_value,
    "chain": send_chain,
    "group": send_group,
    "chord": send_chord,
    "link": send_link,
    "link_error": send_link_error,
    "call": call_task,
    "result": look_up,
    "state": look_at_state,
}


class Recorder(logging.Handler):
    """Keep what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def recorded() -> Iterator[list[str]]:
    """Record what is logged meanwhile, and warnings as if none had been given before."""
    recorder = Recorder()
    logging.getLogger().addHandler(recorder)
    with warnings.catch_warnings():
        yield recorder.lines
    logging.getLogger().removeHandler(recorder)


def answer(app: Celery, calls: dict[str, Any]) -> dict[str, Any]:
    ids: dict[str, Any] = {}
    errors: dict[str, str] = {}
    began = time.monotonic()
    with recorded() as lines:
        for name, call in calls.items():
            try:
                ids[name] = WAYS[call.pop("how", "send_task")](app, **call)
            except Exception as exc:  # every error is an answer here
                errors[name] = f"{exc!r} from {exc.__cause__!r}"
    return {"ids": ids, "errors": errors, "warnings": lines, "took_s": time.monotonic() - began}


def main() -> None:
    logging.captureWarnings(True)
    for line in sys.stdin:
        asked = json.loads(line)
        app = Celery("backend", broker=asked["amqp_url"])
        app.conf.update(celery_config(**asked["config"]))
        print(json.dumps(answer(app, asked["calls"])), flush=True)
        # Behind the answer: a broker that a test has frozen lets go of no connection before the test ends.
        with suppress(Exception):
            app.close()
            pools.reset()


if __name__ == "__main__":
    main()
