"""`autolabs dlq …` that kills itself at a step of its second message; run by test_dlq_kill.py.

The steps are hung into SQLAlchemy, pika, the Publisher and the actions from the outside: nothing in the
command knows of them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from pika.adapters.blocking_connection import BlockingChannel
from sqlalchemy import Engine, event

from console.__main__ import main
from console.dlq.actions import DeadLetterActions
from dispatcher.broker.publisher import Publisher

#: Every step of one message, in its order, for both verbs.
STEPS = (
    "before insert",
    "after insert",
    "before publish",
    "after publish",
    "before commit",
    "after commit",
    "before ack",
    "after ack",
)
_times = 0


def second_time() -> None:
    global _times
    _times += 1
    if _times == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def around(owner: Any, name: str, moment: str) -> None:
    """Die before or after a method of a class."""
    original: Callable[..., Any] = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if moment == "before":
            second_time()
        result = original(*args, **kwargs)
        if moment == "after":
            second_time()
        return result

    setattr(owner, name, wrapped)


def on_insert(moment: str) -> None:
    def check(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "INSERT INTO dead_letter_actions" in statement:
            second_time()

    event.listen(Engine, f"{moment}_cursor_execute", check)


def install(step: str) -> None:
    moment, _, what = step.partition(" ")
    if what == "insert":
        on_insert(moment)
    elif what == "publish":
        around(Publisher, "publish", moment)
    elif step == "before commit":
        event.listen(Engine, "commit", lambda _connection: second_time())
    elif step == "after commit":
        around(DeadLetterActions, "requeue", moment)
        around(DeadLetterActions, "discard", moment)
    else:
        around(BlockingChannel, "basic_ack", moment)


def die_at(step: str, *words: str) -> int:
    install(step)
    return main(["dlq", *words])
