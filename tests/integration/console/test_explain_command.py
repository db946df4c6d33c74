"""`autolabs explain` as a command: its page, its object, its look at a queue, and what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pika
import pytest
from sqlalchemy import Engine

from console.__main__ import main
from console.explain import reading
from console.explain.explanation import awaited
from console.explain.facts import LabFacts, QueueSnapshot
from console.explain.reading import look_at_queue, read_lab_facts
from dispatcher.broker import delay_ladder
from dispatcher.broker.connection import connect
from dispatcher.settings import BrokerSettings
from tests.support.broker.outbox import insert_create
from tests.support.broker.rabbitmq import Broker
from tests.support.broker.tcp_proxy import TcpProxy
from tests.support.containers import in_process
from tests.support.containers.in_process import Answer
from tests.support.database.postgres import Database
from tests.support.factories import create_kwargs
from tests.support.waiting import HANG_S, ends_within

ROOT = Path(__file__).parents[3]


def run_command(*arguments: object, **environ: str) -> Answer:
    """Run `autolabs explain` in this process."""
    return in_process.run_command("explain", *map(str, arguments), environ=environ)


def run_process(*arguments: object, **environ: str) -> Answer:
    """Run it as an operator does."""
    done = subprocess.run(
        [sys.executable, "-m", "console", "explain", *map(str, arguments)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * HANG_S,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def awaited_queue(facts: LabFacts) -> str | None:
    operation = awaited(facts)
    return operation.value if operation else None


def test_only_a_lab_that_waits_has_its_queue_looked_at(engine: Engine, database: Database) -> None:
    given = [{"status": status} for status in ("PENDING", "RUNNING", "FAILED", "STOPPED")]
    given += [{"status": "RUNNING", "stop_requested_at": "now"}]
    waits = [awaited_queue(read_lab_facts(engine, str(database.add_lab(**columns)))) for columns in given]
    assert waits == ["create", None, None, None, "delete"]


def test_the_command_is_a_page_for_people_and_an_object_for_programs(
    database: Database, broker: Broker, lab: int
) -> None:
    database.rows("UPDATE lab_instances SET created_at = now() - interval '5 minutes'")
    environ = {"DATABASE_URL": database.url, "AMQP_URL": broker.url}
    done = run_process(lab, **environ)
    assert (done.code, done.err) == (0, "")
    assert done == run_command(lab, **environ)
    assert f"Lab {lab} (lab 7 of student 42) has been PENDING for 5 minutes." in done.out
    page = " ".join(done.out.split())
    assert "or it was not published (did the backend die between commit and publish?)" in page
    broker.publish("celery.dlq", b"x")
    page = " ".join(run_command(lab, **environ).out.split())
    assert "it is not in celery.lab_operations; elsewhere 1 message is in celery.dlq" in page
    broker.publish_task(kwargs=create_kwargs(lab_instance_id=lab))
    found = json.loads(run_command(lab, "--json", **environ).out)
    assert found["findings"]["situation"] == "in_queue"
    assert found["facts"]["queue"] == {
        "queue": "celery.lab_operations", "messages": 1, "consumers": 0, "delayed": 0, "dead": 1,
        "problem": None,
    }  # fmt: skip
    assert (found["facts"]["lab"]["id"], found["facts"]["runs"]) == (lab, [])


def test_an_outbox_that_cannot_be_published_is_told_with_the_brokers_words(
    database: Database, bare_broker: Broker, lab: int, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    insert_create(database, lab)
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("AMQP_URL", bare_broker.url)
    assert main(["outbox", "relay", "--once"]) == 1
    capsys.readouterr()
    assert main(["explain", str(lab)]) == 0
    page = capsys.readouterr().out
    assert "The task could not be published: " in page
    assert "not published in one try: " in page


@pytest.mark.parametrize("amqp_url", ["amqp://u:hidden@127.0.0.1:1/", "{without queues}"])
def test_a_broker_that_does_not_tell_is_no_failure(
    database: Database, bare_broker: Broker, lab: int, amqp_url: str
) -> None:
    url = bare_broker.url if amqp_url.startswith("{") else amqp_url
    done = run_command(lab, DATABASE_URL=database.url, AMQP_URL=url)
    assert (done.code, done.err) == (0, "")
    assert "celery.lab_operations was not looked at: " in " ".join(done.out.split())
    assert "hidden" not in done.out


def test_a_look_at_a_queue_counts_what_waits_and_who_takes_it(broker: Broker) -> None:
    broker.publish_task()
    assert look_at_queue(broker.settings, "celery.lab_operations") == QueueSnapshot(
        queue="celery.lab_operations", messages=1, consumers=0, delayed=0, dead=0
    )
    assert broker.depth("celery.lab_operations") == 1
    channel = broker.channel()
    channel.basic_consume("celery.cleanup", lambda *_delivery: None)
    channel.confirm_delivery()
    channel.basic_publish(
        delay_ladder.ENTRY_EXCHANGE, delay_ladder.delayed_routing_key(600, "lab.create"), b"x"
    )
    channel.queue_delete("celery.dlq")
    assert look_at_queue(broker.settings, "celery.cleanup") == QueueSnapshot(
        queue="celery.cleanup", messages=0, consumers=1, delayed=1, dead=None
    )


@pytest.mark.parametrize("connected", [False, True])
def test_a_broker_that_says_nothing_is_not_waited_for(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, connected: bool
) -> None:
    monkeypatch.setattr(reading, "QUEUE_TIMEOUT_S", 1)
    with TcpProxy.to(broker.url) as proxy:

        def freeze_around(settings: BrokerSettings, **options: Any) -> pika.BlockingConnection:
            if connected:
                opened = connect(settings, **options)
                proxy.freeze()
                return opened
            proxy.freeze()
            return connect(settings, **options)

        monkeypatch.setattr(reading, "connect", freeze_around)
        with ends_within():
            found = look_at_queue(BrokerSettings(proxy.through(broker.url)), "celery.cleanup")
    assert (found.messages, bool(found.problem)) == (None, True)


def test_without_a_broker_no_queue_is_looked_at(
    database: Database, lab: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.delenv("AMQP_URL", raising=False)
    assert main(["explain", str(lab), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["queue"] is None


def test_what_goes_wrong_is_one_sentence(database: Database) -> None:
    away = run_command(1, DATABASE_URL="postgresql://u:hidden@127.0.0.1:1/db")
    assert away.code == 1
    assert away.err.startswith("autolabs: the lab could not be looked up in the database: ")
    assert "hidden" not in away.err
    unknown = run_command(1, DATABASE_URL=database.url)
    assert (unknown.code, unknown.out) == (1, "")
    assert unknown.err == "autolabs: lab 1 is not in the database, and no task was ever about it\n"
    wrong = run_command(1, DATABASE_URL=database.url, AMQP_URL="http://x")
    assert wrong.code == 2
    assert "AMQP_URL: must look like" in wrong.err
