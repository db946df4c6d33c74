"""The oldest Celery that is supported and the newest one, each in processes of its own.

The newest is the one of the virtual environment; `make venv` puts the oldest beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
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

    def send(self, amqp_url: str, calls: Mapping[str, Any], **environ: str) -> Sent:
        """Let an app with celery_config() make calls; see tests/integration/celery_sender.py."""
        answer = subprocess.run(
            [sys.executable, "-m", "tests.integration.celery_sender"],
            cwd=ROOT,
            env=self.environ(AMQP_URL=amqp_url, **environ),
            input=json.dumps(calls),
            capture_output=True,
            text=True,
            timeout=100,
        )
        if answer.returncode != 0:
            raise AssertionError(
                f"{self.name} Celery ended with {answer.returncode}: {answer.stderr[-4000:]}"
            )
        return Sent(**json.loads(answer.stdout))

    def start_worker(self, log: Path, **environ: str) -> subprocess.Popen[bytes]:
        """Start a worker; see tests/integration/celery_worker.py."""
        command = [sys.executable, "-m", "celery", "-A", "tests.integration.celery_worker", "worker"]
        command += ["--pool", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        with log.open("wb") as file:
            return subprocess.Popen(
                command, cwd=ROOT, env=self.environ(**environ), stdout=file, stderr=subprocess.STDOUT
            )


VERSIONS = [CeleryVersion("oldest", OLDEST), CeleryVersion("newest")]
