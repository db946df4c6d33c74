"""What all histories share: one database with its connections, and the object store's content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg2
from sqlalchemy import Engine

from dispatcher.engine import make_engine
from dispatcher.results import ResultStore
from jobs.config.objectstore import StoredObject
from jobs.database.lab_store import LabStore
from jobs.failures import Failure

if TYPE_CHECKING:
    from tests.support.histories.actors import World

T = TypeVar("T")

#: Containers at the same time.
SLOTS = 3


class Store:
    """The object store, read without a request."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects

    def read(self, key: str) -> StoredObject:
        return StoredObject(self.objects[key], "1")


class PausingLabStore(LabStore):
    """The real store; each round trip is a point at which a history may go on elsewhere."""

    world: World | None = None

    def transaction(self, work: Callable[[Any], T]) -> T:
        done = super().transaction(work)
        if self.world is not None:
            self.world.changed = True
        return done

    def _on_connection(self, work: Callable[[Any], Any]) -> Any:
        if self.world is None:
            return super()._on_connection(work)
        self.world.pause("database")
        fault, self.world.database_fault = self.world.database_fault, ""
        if fault == "away":
            raise Failure.DATABASE_AWAY.error(evidence="no answer")
        done = super()._on_connection(work)
        if fault == "answer lost":  # which jobs.waiting repeats
            done = super()._on_connection(work)
        return done


@dataclass
class Bench:
    """What all histories share: one database with its connections, and the object store."""

    database_url: str
    templates: dict[str, bytes]
    looking: Any = field(init=False)
    engine: Engine = field(init=False)
    results: ResultStore = field(init=False)
    stores: list[PausingLabStore] = field(init=False)

    def __post_init__(self) -> None:
        self.looking = psycopg2.connect(self.database_url)
        self.looking.autocommit = True
        self.engine = make_engine(self.database_url, application_name="histories")
        self.results = ResultStore(self.database_url)
        self.stores = [PausingLabStore(self.database_url, application_name="histories") for _ in range(SLOTS)]

    def close(self) -> None:
        self.results.close()
        self.engine.dispose()
        self.looking.close()
        for store in self.stores:
            store.close()

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self.looking.cursor() as cursor:
            cursor.execute(statement, values)
            return list(cursor.fetchall()) if cursor.description else []
