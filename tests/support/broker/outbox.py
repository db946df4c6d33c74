"""What a backend puts into the outbox, and what the broker got out of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from pika.adapters.blocking_connection import BlockingChannel
from sqlalchemy import Engine

from dispatcher import outbox
from dispatcher.broker import topology
from dispatcher.message.envelope import TaskMessage, decode
from dispatcher.tasks import CREATE_LAB_POD
from tests.support.broker.rabbitmq import Broker
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs, make_payload

ALL = "test.all"


class Arrivals:
    """A queue with every task of the vhost, whatever its kind, in the order in which the broker took them."""

    def __init__(self, broker: Broker) -> None:
        self._channel: BlockingChannel = broker.channel()
        # Gone with the connection; the default type of a vhost, quorum, cannot be exclusive.
        self._channel.queue_declare(ALL, exclusive=True, arguments={"x-queue-type": "classic"})
        self._channel.queue_bind(ALL, topology.TASKS_EXCHANGE, "#")
        self.seen: list[TaskMessage] = []

    def take(self) -> list[TaskMessage]:
        """Take what has arrived by now, and return all that ever has."""
        while True:
            method, properties, body = self._channel.basic_get(ALL, auto_ack=True)
            if method is None or properties is None or body is None:
                return self.seen
            self.seen.append(decode(body, properties))

    def ids(self) -> list[str]:
        return [task.id for task in self.take()]


def commit(engine: Engine, *tasks: Any) -> list[str]:
    """Add tasks, each in a transaction of its own, and return their ids."""
    ids = []
    for task in tasks:
        with engine.begin() as connection:
            ids.append(outbox.add(connection, task))
    return ids


def insert_create(database: Database, lab: int, task_id: str = "t") -> None:
    """Add a create as plain SQL does."""
    kwargs = json.dumps(create_kwargs(lab_instance_id=lab))
    statement = "INSERT INTO task_outbox (task_id, task_name, kwargs) VALUES (%s, %s, %s)"
    database.rows(statement, task_id, CREATE_LAB_POD, kwargs)


def creates(labs: Iterable[int], *, each: int = 1) -> list[Any]:
    """Return creates of several labs in turns; student_id says which one of its lab it is."""
    labs = list(labs)
    return [
        make_payload(lab_instance_id=lab, student_id=number) for number in range(1, each + 1) for lab in labs
    ]


def first_arrivals(tasks: Sequence[TaskMessage]) -> dict[int, list[int]]:
    """Return, by lab, the numbers (see `creates`) in the order in which each was first seen."""
    seen: dict[str, tuple[int, int]] = {}
    for task in tasks:
        seen.setdefault(task.id, (task.kwargs["lab_instance_id"], task.kwargs["student_id"]))
    by_lab = groupby(sorted(seen.values(), key=lambda pair: pair[0]), key=lambda pair: pair[0])
    return {lab: [number for _, number in pairs] for lab, pairs in by_lab}
