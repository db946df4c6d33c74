"""The oldest Celery that is supported and the newest one, each in processes of its own.

The newest is the one of the virtual environment; `make venv` puts the oldest beside it.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import pools

from tests.support.waiting import HANG_S

ROOT = Path(__file__).parents[3]
OLDEST = ROOT / ".venv" / "celery-oldest"


@dataclass(frozen=True)
class Sent:
    """What an app made of its calls."""

    #: Call -> task id, or ids, that Celery gave it; for a call about results what it found.
    ids: dict[str, Any]
    #: Call -> the exception that it raised.
    errors: dict[str, str]
    #: What was logged at WARNING or above.
    warnings: list[str]
    took_s: float


class Sender:
    """A process with a backend's apps: tests/integration/celery_sender.py."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by end()
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.celery_sender"],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def ask(self, question: Mapping[str, Any]) -> Sent:
        if self._popen.stdin is None or self._popen.stdout is None:
            raise AssertionError("it has no pipes")
        self._popen.stdin.write(json.dumps(question) + "\n")
        self._popen.stdin.flush()
        found, _, _ = select.select([self._popen.stdout], [], [], 3 * HANG_S)
        line = self._popen.stdout.readline() if found else ""
        if not line:
            self._errors.seek(0)
            raise AssertionError(f"no answer of a Celery app: {self._errors.read()[-4000:]}")
        return Sent(**json.loads(line))

    def end(self) -> None:
        self._popen.kill()
        self._popen.communicate()
        self._errors.close()


#: Those that wait for the next question, by the version's name; a start of Celery costs a second or more.
_senders: dict[str, Sender] = {}


@dataclass(frozen=True)
class CeleryVersion:
    """Run programs of the tests with one Celery, as modules from the root of the checkout."""

    name: str
    #: Goes before the packages of the virtual environment.
    folder: Path | None = None

    @property
    def has_ladder(self) -> bool:
        """Whether it sends a task for later over the delay ladder, rather than to the queue at once."""
        return self.folder is None

    def environ(self, **others: str) -> dict[str, str]:
        if self.folder is None:
            return {**os.environ, **others}
        if not (self.folder / ".installed").exists():
            raise AssertionError(f"{self.folder} is not there: `make venv` installs the oldest Celery")
        return {**os.environ, "PYTHONPATH": str(self.folder), **others}

    def send(self, amqp_url: str, calls: Mapping[str, Any], **config: Any) -> Sent:
        """Let an app with celery_config(**config) make calls; see tests/integration/celery_sender.py."""
        if self.name not in _senders:
            _senders[self.name] = Sender(self.environ())
        try:
            return _senders[self.name].ask({"amqp_url": amqp_url, "config": config, "calls": calls})
        except AssertionError:
            self.end_sender()
            raise

    def end_sender(self) -> None:
        """Let the next calls be those of another process."""
        if sender := _senders.pop(self.name, None):
            sender.end()

    def start_worker(self, log: Path, **environ: str) -> subprocess.Popen[bytes]:
        """Start a worker; see tests/integration/celery_worker.py."""
        command = [sys.executable, "-m", "celery", "-A", "tests.integration.celery_worker", "worker"]
        command += ["--pool", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        with log.open("wb") as file:
            return subprocess.Popen(
                command, cwd=ROOT, env=self.environ(**environ), stdout=file, stderr=subprocess.STDOUT
            )


VERSIONS = [CeleryVersion("oldest", OLDEST), CeleryVersion("newest")]


@atexit.register
def _end_senders() -> None:
    for version in VERSIONS:
        version.end_sender()


def close_app(app: Celery) -> None:
    """Close an app and its connections, which Celery leaves to the pools of kombu."""
    app.close()
    pools.reset()
