"""Dead letters as containers and the broker make them, and `autolabs dlq`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

import pika

from dispatcher.broker import topology
from dispatcher.message.envelope import TaskMessage, encode
from dispatcher.tasks import DELETE_LAB_POD
from tests.integration.dlq_victim import die_at
from tests.support.broker.rabbitmq import Broker
from tests.support.containers.forked import exit_code, forked
from tests.support.containers.in_process import Answer, run_command
from tests.support.database.postgres import Database
from tests.support.factories import make_task
from tests.support.waiting import eventually_equal

ROOT = Path(__file__).parents[3]
DLQ = topology.DEAD_LETTER_QUEUE


def make_delete(lab_instance_id: int = 7, **changes: Any) -> TaskMessage:
    """Return a task that can be requeued at any time."""
    return make_task(name=DELETE_LAB_POD, kwargs={"lab_instance_id": lab_instance_id}, **changes)


def why(task: TaskMessage, **changes: Any) -> dict[str, Any]:
    """Return the headers that a container adds."""
    story = {
        "reason": "The lab takes longer than usual to stop. It was tried 4 times.",
        "category": "TEMPORARY_RESOURCE_ERROR",
        "cause": "slow_stop",
        "task-id": task.id,
        "task": task.name,
        "lab-instance-id": task.kwargs.get("lab_instance_id"),
        "attempts": 4,
        "first-error": "The cluster does not answer at the moment; it is tried again by itself.",
        "last-error": "The lab takes longer than usual to stop. It was tried 4 times.",
        "dead-at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "queue": topology.QUEUE_HIGH,
        "routing-key": "lab.delete",
        "job": "job-1",
        "pod": "pod-1",
    }
    return {f"x-autolabs-{name}": value for name, value in {**story, **changes}.items()}


def bury(broker: Broker, *dead: TaskMessage, **changes: Any) -> list[str]:
    """Put tasks into the dead-letter queue as containers do, confirmed; return their ids."""
    channel = broker.channel()
    channel.confirm_delivery()
    for task in dead:
        body, sent = encode(task)
        sent["headers"] |= why(task, **changes)
        sent.pop("expiration", None)
        key = sent["headers"]["x-autolabs-routing-key"]
        channel.basic_publish(topology.DEAD_LETTER_EXCHANGE, key, body, pika.BasicProperties(**sent))
    channel.connection.close()
    return [task.id for task in dead]


@dataclass
class Dlq:
    """`autolabs dlq …` against a test's servers: called in this process, or as one of its own."""

    broker: Broker
    database: Database
    environ: dict[str, str] = field(default_factory=dict)

    def __call__(
        self, *words: str, environ: Mapping[str, str] | None = None, stdin: TextIO | None = None
    ) -> Answer:
        """Run a command in this process."""
        return run_command("dlq", *words, environ=self._environ(environ or {}), stdin=stdin)

    def process(self, *words: str, module: str = "console", **environ: str) -> Answer:
        """Run a command in a process of its own."""
        popen = self.start(*words, module=module, environ=environ)
        try:
            out, err = popen.communicate(timeout=90)
        except subprocess.TimeoutExpired as exc:
            popen.kill()
            out, err = popen.communicate()
            raise AssertionError(f"dlq {' '.join(words)} did not end:\n{out}\n{err}") from exc
        return Answer(popen.returncode, out, err)

    def _environ(self, changes: Mapping[str, str]) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "AMQP_URL": self.broker.url,
            "DATABASE_URL": self.database.url,
            **self.environ,
            **changes,
        }

    def start(
        self,
        *words: str,
        module: str = "console",
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", *module.split(), "dlq", *words],
            cwd=ROOT,
            env={"PYTHONIOENCODING": "utf-8", **self._environ(environ or {})},
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    def peak_mib(self, *words: str) -> int:
        """Run a command that succeeds; return the most memory it had."""
        answer = self.process(*words, module="tests.support.containers.peak_memory")
        if answer.code != 0:
            raise AssertionError(answer)
        return int(answer.err.splitlines()[-1])

    def killed(self, step: str, *words: str, log: Path) -> None:
        """Run a command that kills itself at a step of tests.integration.dlq_victim."""
        with forked(die_at, step, *words, environ=self._environ({}), log=log) as victim:
            if exit_code(victim) != -signal.SIGKILL:
                raise AssertionError(f"{step} was not reached: {log.read_text()}")

    def actions(self) -> list[dict[str, Any]]:
        return self.database.rows("SELECT * FROM dead_letter_actions ORDER BY id")

    def ids(self, queue: str = DLQ) -> list[str]:
        """Return the task ids of a queue in its order, and leave it as it is."""
        if not (expected := self.broker.depth(queue)):
            return []
        connection = pika.BlockingConnection(pika.URLParameters(self.broker.url))
        channel = connection.channel()
        found: list[str] = []
        for _, sent, _ in channel.consume(queue, inactivity_timeout=5):
            if sent is None:
                break
            found.append(str((sent.headers or {}).get("id")))
            if len(found) == expected:
                break
        connection.close()  # returns them in their order, as they were one consumer's
        eventually_equal(lambda: self.broker.depth(queue), expected)
        return found
