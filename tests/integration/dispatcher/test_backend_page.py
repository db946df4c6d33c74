"""The code of docs/backend.md, run from its first block to the last as one program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from dispatcher.broker import topology
from tests.support.broker.rabbitmq import Broker
from tests.support.database.postgres import Database

PAGE = (Path(__file__).parents[3] / "docs" / "backend.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_python_of_the_page_runs(
    broker: Broker, database: Database, redis_url: str, tmp_path: Path
) -> None:
    program = "\n\n".join(blocks("python"))
    tests = re.findall(r"^def (test_\w+)", program, flags=re.MULTILINE)
    assert len(tests) == 2
    script = tmp_path / "page.py"
    script.write_text("\n".join([program, *(f"{name}()" for name in tests)]))
    # Celery leaves its socket to the end of the interpreter, which says so.
    strict = ["-W", "error", "-W", "ignore:unclosed <socket:ResourceWarning"]
    done = subprocess.run(
        [sys.executable, *strict, script],
        env={
            "PATH": os.environ["PATH"],
            "AMQP_URL": broker.url,
            "DATABASE_URL": database.url,
            "REDIS_URL": redis_url,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    labs = database.rows("SELECT celery_task_id FROM lab_instances ORDER BY id")
    # The first block publishes without the outbox; the others, one of them by asyncio, go through it.
    assert [lab["celery_task_id"] is None for lab in labs] == [True, False, False, False]
    assert broker.depth(topology.QUEUE_NORMAL) == len(labs)
    assert broker.depth(topology.QUEUE_HIGH) == 1 + 1 + 100
    assert broker.delayed() == 3
    assert database.rows("SELECT id FROM task_outbox") == []


def test_the_sql_of_the_page_is_a_task(broker: Broker, database: Database) -> None:
    (statement,) = blocks("sql")
    (added,) = database.rows(statement)
    environ = {"PATH": os.environ["PATH"], "AMQP_URL": broker.url, "DATABASE_URL": database.url}
    commands = [line for line in "".join(blocks("console")).splitlines() if line.startswith("autolabs ")]
    assert len(commands) == 3
    printed = [
        subprocess.run(
            [Path(sys.executable).with_name("autolabs"), *command.split()[1:]],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for command in commands
    ]
    assert added["task_id"] in printed[1]
    assert broker.take(topology.QUEUE_HIGH).properties.correlation_id == added["task_id"]
