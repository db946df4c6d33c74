"""`autolabs schedule` as an operator runs it, in a namespace and with a bucket of a test module's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from console.schedules.cron_jobs import CronJobs
from cronjobs.timetable import SCHEDULES
from tests.support.cluster.own_platform import OwnPlatform
from tests.support.containers.ctrl_c import HEARS_CTRL_C
from tests.support.containers.in_process import Answer, run_command

ROOT = Path(__file__).parents[2]
#: Seconds after which something hangs, on however slow a machine.
HANGS_S = 180
#: The containers may reach everything: what they may reach in `platform` is another test's.
_OPEN = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "open"},
    "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]},
}


@dataclass
class Operator:
    """Runs commands with the settings that `make env` prints, but for the own bucket and database."""

    platform: OwnPlatform
    environ: dict[str, str] = field(init=False)
    _started: list[subprocess.Popen[str]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        """Give the namespace what the containers need."""
        settings, namespace = self.platform.bucket.settings, self.platform.namespace
        secret = {
            "AMQP_URL": self.platform.broker.url,
            "DATABASE_URL": self.platform.database.url,
            "S3_ENDPOINT": settings.endpoint,
            "S3_ACCESS_KEY": settings.access_key,
            "S3_SECRET_KEY": settings.secret_key,
        }
        self.environ = {**os.environ, "DATABASE_URL": secret["DATABASE_URL"], "S3_BUCKET": settings.bucket}
        metadata = {"name": "autolabs-jobs"}
        namespace.kubectl(
            *("apply", "--filename=-"),
            stdin={"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": secret},
        )
        namespace.kubectl("apply", "--filename=-", stdin=_OPEN)

    @property
    def cron_jobs(self) -> CronJobs:
        return CronJobs(self.platform.namespace.cluster, self.platform.namespace.name)

    def words(self, *words: str) -> list[str]:
        own = [] if words[0] == "show" else ["--namespace", self.platform.namespace.name]
        return ["schedule", *words, *own]

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command as a process, to be interrupted, or beside others."""
        command = subprocess.Popen(
            [*HEARS_CTRL_C, sys.executable, "-m", "console", *self.words(*words)],
            cwd=ROOT,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(command)
        return command

    def end(self, command: subprocess.Popen[str]) -> Answer:
        """Wait for the end of what was started."""
        out, err = command.communicate(timeout=HANGS_S)
        return Answer(command.returncode, out, err)

    def run(self, *words: str) -> Answer:
        """Run a command in this process."""
        return run_command(*self.words(*words), environ=self.environ)

    def clear(self) -> None:
        """End what was started and take away the runs by hand, whatever state a test left them in."""
        for command in self._started:
            with command:  # which closes its pipes and waits for it
                command.kill()
        self._started.clear()
        jobs = [name for schedule in self.cron_jobs.live() for name in self.jobs(schedule, by_hand=True)]
        if jobs:
            self.platform.namespace.kubectl("delete", "job", *jobs, "--ignore-not-found")

    def do(self, *words: str) -> str:
        """Run a command that has to succeed; return its output."""
        done = self.run(*words)
        assert done.code == 0, done
        return done.out

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return what `list` says."""
        return {row["name"]: row for row in json.loads(self.do("list", "--json"))}

    def store(self, document: str) -> None:
        """Put a document into the bucket as somebody with `mc` does."""
        self.platform.bucket.put(SCHEDULES, document.encode())

    def stored(self) -> str:
        return self.do("show")

    def spec(self, name: str) -> dict[str, Any]:
        return dict(self.cron_jobs.live()[name]["spec"])

    def jobs(self, name: str, *, by_hand: bool = False) -> list[str]:
        return [
            job["metadata"]["name"]
            for job in self.cron_jobs.jobs(name)
            if ("-now-" in job["metadata"]["name"]) is by_hand
        ]
