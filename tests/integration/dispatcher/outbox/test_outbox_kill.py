"""A relay killed with SIGKILL: every committed task arrives at least once, none that was rolled back does."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from sqlalchemy import Engine

from dispatcher import outbox
from dispatcher.__main__ import main as autolabs
from dispatcher.broker.publisher import Publisher
from dispatcher.engine import make_engine
from dispatcher.outbox.relay import relay_once
from tests.integration.outbox_victim import STEPS, die_at
from tests.support.broker.outbox import Arrivals, commit, creates, first_arrivals
from tests.support.broker.rabbitmq import Broker
from tests.support.broker.tcp_proxy import TcpProxy
from tests.support.containers.forked import exit_code, forked
from tests.support.database.postgres import Database
from tests.support.factories import make_payload
from tests.support.waiting import HANG_S, eventually


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """What the processes of a test write."""
    found = tmp_path / "relay.log"
    found.touch()
    return found


def environ_of(database: Database, amqp_url: str) -> dict[str, str]:
    return {**os.environ, "DATABASE_URL": database.url, "AMQP_URL": amqp_url}


def count(what: str, committed: list[str], rolled_back: list[str], arrivals: Arrivals) -> None:
    """Check the promise, and print the numbers it is about."""
    arrived = Counter(arrivals.ids())
    repeated = sum(1 for times in arrived.values() if times > 1)
    print(
        f"{what}: {len(committed)} committed, {len(arrived)} arrived, {repeated} of them more than once;"
        f" {len(rolled_back)} rolled back, {len(arrived.keys() & set(rolled_back))} of them arrived"
    )
    assert arrived.keys() == set(committed)
    for lab, numbers in first_arrivals([t for t in arrivals.seen if "student_id" in t.kwargs]).items():
        assert numbers == sorted(numbers), f"order of lab {lab}"


#: Makes the first three rows something that cannot be a message, as plain SQL may; and undoes it.
SPOIL = """
    UPDATE task_outbox SET kwargs = kwargs || CAST('{"spoiled": 1' || repeat('0', 5000) || '}' AS jsonb)
    WHERE id <= (SELECT min(id) + 2 FROM task_outbox)
"""
REPAIR = "UPDATE task_outbox SET kwargs = kwargs - 'spoiled', next_attempt_at = now()"


def has_more(log: Path, starts: int) -> bool:
    return log.read_bytes().count(b"listening") > starts


def fill(engine: Engine) -> tuple[list[str], list[str]]:
    """Commit 60 creates of 20 labs, and roll 20 back in between."""
    committed, rolled_back = [], []
    for payload in creates(range(1, 21), each=3):
        committed += commit(engine, payload)
        if len(committed) % 3 == 0:
            with engine.connect() as connection:
                rolled_back.append(outbox.add(connection, make_payload(lab_instance_id=99)))
    return committed, rolled_back


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step(
    step: str,
    engine: Engine,
    broker: Broker,
    database: Database,
    publisher: Publisher,
    arrivals: Arrivals,
    log: Path,
) -> None:
    committed, rolled_back = fill(engine)
    if "postponing" in step:
        database.rows(SPOIL)
    backend = make_engine(database.url, application_name="test-open-transaction")
    with backend.connect() as open_transaction:
        rolled_back.append(outbox.add(open_transaction, make_payload(lab_instance_id=99)))
        with forked(die_at, step, 10, environ=environ_of(database, broker.url), log=log) as victim:
            assert exit_code(victim) == -signal.SIGKILL, log.read_text()
        database.rows(REPAIR)
        # PostgreSQL gives the rows free when it notices that the victim is gone.
        eventually(
            lambda: relay_once(engine, publisher).complete and not database.rows("SELECT 1 FROM task_outbox"),
            what="an empty outbox",
        )
        open_transaction.rollback()
    backend.dispose()
    relay_once(engine, publisher)
    count(f"killed {step}", committed, rolled_back, arrivals)


@pytest.mark.parametrize("place", [1, 25, 50], ids=lambda place: f"publish {place} of 60")
def test_killed_while_its_publishes_are_on_the_way(
    place: int,
    engine: Engine,
    broker: Broker,
    database: Database,
    publisher: Publisher,
    arrivals: Arrivals,
    log: Path,
) -> None:
    committed, rolled_back = fill(engine)
    # Sixty labs, so that one batch has them all.
    database.rows("UPDATE task_outbox SET kwargs = jsonb_set(kwargs, '{lab_instance_id}', to_jsonb(id))")
    with TcpProxy.to(broker.url) as proxy:
        victims: list[ForkServerProcess] = []

        def kill(data: bytes) -> bool:
            if committed[place - 1].encode() in data:
                victims[0].kill()
            return False

        proxy.swallow_answer_to = kill
        url = proxy.through(broker.url)
        with forked(die_at, "never", 100, environ=environ_of(database, url), log=log) as victim:
            victims.append(victim)
            assert exit_code(victim) == -signal.SIGKILL, log.read_text()
    eventually(
        lambda: relay_once(engine, publisher).complete and not database.rows("SELECT 1 FROM task_outbox"),
        what="an empty outbox",
    )
    count(f"killed at publish {place}", committed, rolled_back, arrivals)


def test_killed_at_random_moments_again_and_again(
    engine: Engine, broker: Broker, database: Database, arrivals: Arrivals, log: Path
) -> None:
    committed: list[str] = []
    rolled_back: list[str] = []
    done = threading.Event()

    def work() -> None:
        for number, payload in enumerate(creates(range(1, 11), each=100)):
            if number % 5 == 0:
                with engine.connect() as connection:
                    rolled_back.append(outbox.add(connection, make_payload(lab_instance_id=99)))
            committed.extend(commit(engine, payload))
        done.set()

    backend = threading.Thread(target=work)
    kills = 0
    chance = random.Random(4)
    environ = environ_of(database, broker.url)
    relay = partial(forked, autolabs, ["outbox", "relay"], environ=environ, log=log)
    while not done.is_set() or kills < 8:
        listening = log.read_bytes().count(b"listening")
        with relay() as process:
            started = partial(has_more, log, listening)
            eventually(started, what="a relay")
            if not backend.is_alive() and not done.is_set():
                backend.start()
            done.wait(chance.uniform(0.0, 0.4))
            process.kill()
            kills += 1
    backend.join(HANG_S)
    with relay():
        eventually(lambda: not database.rows("SELECT 1 FROM task_outbox"), what="an empty outbox")
    count(f"killed {kills} times at random", committed, rolled_back, arrivals)
