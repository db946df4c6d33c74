"""Fixtures of vhosts and databases that are lent to tests; a pytest plugin, one pool in each process.

What a test leaves that would disturb another (an open connection, a session with its locks, a user) is an
error of that test, by name. What it changed (a queue, a table) is mended or thrown away, and in the report.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dispatcher.migrations.migrate import upgrade
from tests.support.broker.rabbitmq import Broker
from tests.support.broker.vhost_pool import VhostPool
from tests.support.database.database_pool import DatabasePool
from tests.support.database.postgres import Database, Server

#: Property of a test in the junit file: what it changed in what was lent to it.
CHANGED = "changed"


@pytest.fixture(scope="session")
def vhost_pool() -> Iterator[VhostPool]:
    pool = VhostPool(os.environ["AMQP_URL"], os.environ["RABBITMQ_API_URL"])
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def database_server() -> Server:
    return Server(os.environ["DATABASE_URL"])


@pytest.fixture(scope="session")
def migrated_template(database_server: Server) -> Iterator[str]:
    database = database_server.create()
    upgrade(database.url)
    yield database.name
    database.drop()


@pytest.fixture(scope="session")
def database_pool(database_server: Server, migrated_template: str) -> Iterator[DatabasePool]:
    pool = DatabasePool(database_server, migrated_template)
    yield pool
    pool.close()


@contextmanager
def lent_vhost(pool: VhostPool, borrower: pytest.Item | pytest.Collector) -> Iterator[Broker]:
    """Yield a vhost with the topology. Raises AssertionError afterwards if something is left."""
    broker = pool.lend()
    try:
        yield broker
    finally:
        _report(borrower, *pool.take_back(broker))


@contextmanager
def lent_database(pool: DatabasePool, borrower: pytest.Item | pytest.Collector) -> Iterator[Database]:
    """Yield a database with the tables. Raises AssertionError afterwards if something is left."""
    database = pool.lend()
    try:
        yield database
    finally:
        _report(borrower, *pool.take_back(database))


def _report(borrower: pytest.Item | pytest.Collector, left: list[str], changed: list[str]) -> None:
    if isinstance(borrower, pytest.Item):
        borrower.user_properties += [(CHANGED, line) for line in changed]
    if left:
        raise AssertionError(f"{borrower.nodeid} left behind: {'; '.join(left)}")
