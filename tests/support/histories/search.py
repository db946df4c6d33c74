"""Live many histories, each of other choices, until one does not end as it should.

A test module imports the fixtures `bench` and `quick` beside `live_many`.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache

import pytest
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st

import jobs.checks.cleanup
import jobs.cluster.lab_objects
import jobs.config.templates
import jobs.handlers.create
from jobs import steps
from jobs.config.stored import DEFAULTS
from tests.support.database.postgres import Server
from tests.support.histories.actors import Violation, World
from tests.support.histories.bench import Bench
from tests.support.histories.moves import come_to_rest, play

#: True: other histories each time.
AT_RANDOM = "TEST_HISTORIES" in os.environ
_CHOICES = st.binary(min_size=20, max_size=70)


@pytest.fixture(scope="module")
def bench(database_server: Server, migrated_template: str) -> Iterator[Bench]:
    database = database_server.create(template=migrated_template)
    # What a crash of the server would lose is not what this is about.
    database.rows(f'ALTER DATABASE "{database.name}" SET synchronous_commit TO off')
    templates = {
        path.relative_to(DEFAULTS).as_posix(): path.read_bytes() for path in DEFAULTS.rglob("*.yaml")
    }
    bench = Bench(database.url, templates)
    yield bench
    bench.close()
    database.drop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Answers of labs' Services are not what this is about, and thousands of log lines neither."""
    monkeypatch.setattr(jobs.handlers.create, "wait_answers", lambda _host, _port: True)
    # Half the time of a history would go into reading the same templates.
    monkeypatch.setattr(jobs.config.templates, "_load", lru_cache(jobs.config.templates._load))
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def live_many(bench: Bench, count: int, seen: Counter[str], *, shrink: bool, first: int = 0) -> None:
    """Live so many histories, those that follow from the number `first`. Raises Violation."""
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]

    @settings(
        max_examples=count,
        phases=phases,
        suppress_health_check=[*HealthCheck],
        report_multiple_bugs=False,
    )
    @given(_CHOICES)
    def one(choices: bytes) -> None:
        _live(bench, choices, seen)

    search: Callable[[], None] = one if AT_RANDOM else seed(first)(one)
    search()


def _live(bench: Bench, choices: bytes, seen: Counter[str]) -> None:
    world = World(bench)
    seen["histories"] += 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "observers", [world.reached])
        patch.setattr(jobs.cluster.lab_objects, "time", world.clock)
        # The broker is simulated, and has no queue to count.
        patch.setattr(jobs.checks.cleanup, "_deletes_wait", lambda _context: False)
        try:
            play(world, choices)
            come_to_rest(world)
            world.check_end()
        except Violation:
            note("\n".join(world.played))
            raise
        finally:
            for actor in [*world.actors]:
                actor.kill()
            seen.update(world.seen)
