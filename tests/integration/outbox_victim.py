"""A relay that kills itself at one step of its loop; run by test_outbox_kill.py in a process of its own.

The steps are hung into SQLAlchemy, the database driver and the Publisher from the outside: nothing in
the relay knows of them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Engine, event

from dispatcher.broker.publisher import Publisher
from dispatcher.engine import make_engine
from dispatcher.errors import PublishError
from dispatcher.message.envelope import TaskMessage
from dispatcher.outbox.relay import relay_once
from dispatcher.settings import BrokerSettings


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingPublisher(Publisher):
    """Publish as ever, but die before, in the middle, or after."""

    step = ""

    def publish_tasks(
        self, messages: Sequence[TaskMessage], *, timeout_s: float | None = None
    ) -> list[PublishError | None]:
        if self.step == "before publish":
            die()
        if self.step == "half-way through publishing":
            super().publish_tasks(messages[: len(messages) // 2], timeout_s=timeout_s)
            die()
        errors = super().publish_tasks(messages, timeout_s=timeout_s)
        if self.step == "after publish":
            die()
        return errors


def on_statement(engine: Engine, moment: str, words: str) -> None:
    """Die before or after the statement that contains `words`."""

    def check(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if words in statement:
            die()

    event.listen(engine, f"{moment}_cursor_execute", check)


def on_commit(engine: Engine, moment: str) -> None:
    original: Callable[[Any], None] = engine.dialect.do_commit

    def commit(connection: Any) -> None:
        if moment == "before":
            die()
        original(connection)
        die()

    engine.dialect.do_commit = commit  # type: ignore[assignment, method-assign]


STATEMENTS = {
    "select": "FOR UPDATE",
    "arming": "set_config",
    "delete": "DELETE FROM task_outbox",
    "postponing": "UPDATE task_outbox",
}

#: Every step of the loop, in its order.
STEPS = (
    "before select",
    "after select",
    "after arming",
    "before publish",
    "half-way through publishing",
    "after publish",
    "before delete",
    "after delete",
    "before postponing",
    "after postponing",
    "before commit",
    "after commit",
)


def die_at(step: str, batch: int) -> None:
    engine = make_engine(os.environ["DATABASE_URL"], application_name="test-victim")
    moment, _, what = step.partition(" ")
    if what in STATEMENTS:
        on_statement(engine, moment, STATEMENTS[what])
    elif what == "commit":
        with engine.connect():  # its first connection sets the dialect up, and that commits nothing of ours
            pass
        on_commit(engine, moment)
    publisher = DyingPublisher(BrokerSettings(os.environ["AMQP_URL"]), name="test-victim")
    publisher.step = step
    relay_once(engine, publisher, batch=batch)
