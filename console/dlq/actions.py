"""Requeue or discard a message of the dead-letter queue, and keep who did it.

The order is: audit row written, task published and confirmed, row committed, message acknowledged by the
caller (console.dlq.run). So nothing leaves the queue without its row, and no row speaks of a publish that
failed. A crash before the ack leaves the message in the queue: requeued again it is a duplicate, which
containers recognise, and the row of an action that nobody saw the end of may be missing or be there twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, insert, or_, select
from sqlalchemy.exc import SQLAlchemyError

from console.dlq.letters import MIN_PREFIX, DeadLetter, Selector, read_task
from console.dlq.output import plain_json, plain_text
from console.dlq.queue import Browsed
from dispatcher import tasks
from dispatcher.broker import delay_ladder, topology
from dispatcher.broker.outgoing import FURTHER_KEYS
from dispatcher.broker.publisher import Publisher
from dispatcher.engine import reason
from dispatcher.errors import DispatcherError, Unencodable
from dispatcher.message import envelope
from dispatcher.models import DeadLetterAction, DeadLetterVerb, LabInstance, TaskCancellation

#: Bytes of a discarded body that the audit row keeps.
MAX_KEPT_BYTES = 1024 * 1024
#: Rows of the audit table that `done_earlier` returns at most.
MAX_TOLD = 20
#: Beginnings of headers that a message got on its way to the dead-letter queue; a fresh one has none of them.
_WHY = ("x-autolabs-", "x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")
#: Headers with the first error of the attempts before, and keys by which the broker would route copies.
_DROPPED = {envelope.FIRST_ERROR, *FURTHER_KEYS}


class Refused(DispatcherError):
    """Raised when an action would do nothing, or harm; the message stays in the queue."""


@dataclass(frozen=True, slots=True)
class DoneEarlier:
    """A row of the audit table."""

    id: int
    acted_at: datetime
    actor: str
    action: str
    message_key: str
    task_id: str | None
    task_name: str | None
    lab_instance_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterActions:
    """Act on messages for one person; every method raises DispatcherError when a server refuses."""

    engine: Engine
    publisher: Publisher
    actor: str
    #: Requeue also what would do nothing.
    force: bool
    #: Requeue without the time until which a task is to be begun.
    drop_expires: bool

    def check_requeue(self, letter: DeadLetter) -> None:
        """Raise Refused for a message that does nothing when it is published again."""
        with _transaction(self.engine) as connection:
            self._check(connection, letter)

    def requeue(self, found: Browsed) -> str:
        """Publish a message as a first attempt under its id; return the routing key.

        Raises:
            Refused: it would do nothing, or cannot be written again.
            DispatcherError: nobody knows whether it was published; it stays where it is.
        """
        with _transaction(self.engine) as connection:
            self._check(connection, found.letter)
            _record(connection, found, DeadLetterVerb.REQUEUED, self.actor)
            try:
                return self._publish(found)
            except Unencodable as exc:
                raise Refused(f"it cannot be written again: {exc}") from exc

    def discard(self, found: Browsed) -> None:
        """Keep a message in the audit table, to be taken away by the caller."""
        with _transaction(self.engine) as connection:
            _record(connection, found, DeadLetterVerb.DISCARDED, self.actor)

    def done_earlier(self, selector: Selector, wanted_id: str | None) -> list[DoneEarlier]:
        """Return what was done with messages that a selector means, or one of its ids, the newest first."""
        columns = [getattr(DeadLetterAction, name) for name in DoneEarlier.__slots__]
        query = select(*columns).order_by(DeadLetterAction.id.desc()).limit(MAX_TOLD)
        with _transaction(self.engine) as connection:
            rows = connection.execute(query.where(*_meant(selector, wanted_id)))
            return [DoneEarlier(*row) for row in rows]

    def _check(self, connection: Connection, letter: DeadLetter) -> None:
        obstacles = [] if self.force else list(_obstacles(connection, letter))
        if letter.expires and letter.expires <= datetime.now(timezone.utc) and not self.drop_expires:
            obstacles.append(
                f"it expired at {letter.expires.isoformat(timespec='seconds')}, so nobody would begin it;"
                " --drop-expires publishes it without that"
            )
        if obstacles:
            raise Refused("; ".join(obstacles))

    def _publish(self, found: Browsed) -> str:
        task, _ = read_task(found.body, found.properties)
        routing_key = found.letter.routing_key
        if not any(routing_key in keys for keys in topology.BINDINGS.values()):
            routing_key = tasks.routing_key(task.name if task else "")
        exchange, way = topology.TASKS_EXCHANGE, routing_key
        if task is None:
            self.publisher.publish(exchange, way, found.body, _properties_as_they_were(found))
            return routing_key
        now = datetime.now(timezone.utc)
        fresh = replace(
            task,
            retries=0,
            first_error=None,
            eta=task.eta if task.eta and task.eta > now else None,
            expires=None if self.drop_expires else task.expires,
        )
        try:
            body, properties = envelope.encode(fresh)
        except (TypeError, ValueError, RecursionError) as exc:
            raise Unencodable(fresh.id, str(exc)) from exc
        if fresh.eta:
            exchange = delay_ladder.ENTRY_EXCHANGE
            way = delay_ladder.delayed_routing_key((fresh.eta - now).total_seconds(), routing_key)
        self.publisher.publish(exchange, way, body, properties)
        return routing_key


def _meant(selector: Selector, wanted_id: str | None) -> Iterator[ColumnElement[bool]]:
    action = DeadLetterAction
    if wanted_id is not None:
        by_id = action.task_id == plain_text(wanted_id)
        by_key = action.message_key.startswith(wanted_id.lower(), autoescape=True)
        yield or_(by_id, by_key) if len(wanted_id) >= MIN_PREFIX else by_id
    if selector.lab is not None:
        yield action.lab_instance_id == selector.lab
    texts = (
        (action.error_category, selector.category),
        (action.cause, selector.cause),
        (action.task_name, selector.task),
    )
    yield from (column == plain_text(wanted) for column, wanted in texts if wanted is not None)


def _obstacles(connection: Connection, letter: DeadLetter) -> Iterator[str]:
    if letter.problem is not None:
        yield f"no container performs it, so it would come straight back: {letter.problem}"
        return
    lab_instance_id = letter.lab_instance_id
    if letter.task_name == tasks.CREATE_LAB_POD and lab_instance_id is not None:
        columns = (LabInstance.status, LabInstance.stop_requested_at)
        row = connection.execute(select(*columns).where(LabInstance.id == lab_instance_id)).one_or_none()
        if row is None:
            yield f"lab {lab_instance_id} is not in the database; ask the backend for a new lab"
        elif row.status != "PENDING":
            forward = "states only move forward; ask the backend for a new lab"
            yield f"lab {lab_instance_id} is {row.status} and {forward}"
        elif row.stop_requested_at is not None:
            yield f"lab {lab_instance_id} is to be stopped, so nobody would start it"
    cancelled = select(TaskCancellation.task_id).where(TaskCancellation.task_id == letter.task_id)
    if connection.execute(cancelled).first() is not None:
        yield "the task was cancelled, so nobody would begin it"


def _record(connection: Connection, found: Browsed, verb: DeadLetterVerb, actor: str) -> None:
    letter = found.letter
    discarded = verb is DeadLetterVerb.DISCARDED
    values: dict[str, Any] = {
        "actor": plain_text(actor),
        "action": verb.value,
        "message_key": letter.key,
        "task_id": plain_text(letter.task_id),
        "task_name": plain_text(letter.task_name),
        "lab_instance_id": letter.lab_instance_id,
        "routing_key": plain_text(letter.routing_key),
        "reason": plain_text(letter.reason),
        "error_category": plain_text(letter.category),
        "cause": plain_text(letter.cause),
        "content_type": plain_text(found.properties.content_type),
        "content_encoding": plain_text(found.properties.content_encoding),
        "headers": plain_json(found.properties.headers or {}),
        "body": found.body[:MAX_KEPT_BYTES] if discarded else None,
        "body_bytes": letter.size,
    }
    connection.execute(insert(DeadLetterAction).values(values))


def _properties_as_they_were(found: Browsed) -> dict[str, Any]:
    """Return the properties of what is no task, without what tells of its death."""
    sent = found.properties
    headers = {
        name: value
        for name, value in (sent.headers or {}).items()
        if not str(name).startswith(_WHY) and name not in _DROPPED
    }
    return {
        "headers": headers,
        "content_type": sent.content_type,
        "content_encoding": sent.content_encoding,
        "correlation_id": sent.correlation_id,
        "delivery_mode": 2,
    }


@contextmanager
def _transaction(engine: Engine) -> Iterator[Connection]:
    try:
        with engine.begin() as connection:
            yield connection
    except SQLAlchemyError as exc:
        raise DispatcherError(f"the database did not record the action: {reason(exc)}") from exc
