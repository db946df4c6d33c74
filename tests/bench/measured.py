"""What one command costs: seconds, seconds of CPU, and the most memory it had at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.containers.container import ROOT

_LAUNCHER = Path(__file__).with_name("launcher.py")


@dataclass(frozen=True, slots=True)
class Cost:
    """One run of a command; `output` is all that it printed, both streams."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    output: str

    @classmethod
    def worst(cls, costs: list[Cost]) -> Cost:
        """Return the worst of each figure."""
        return cls(
            wall_s=max(cost.wall_s for cost in costs),
            cpu_s=max(cost.cpu_s for cost in costs),
            peak_mib=max(cost.peak_mib for cost in costs),
            output=costs[-1].output,
        )

    def cells(self) -> str:
        """Return the three figures, for a table."""
        return f"{self.wall_s:>9.1f}{self.cpu_s:>9.1f}{self.peak_mib:>10.0f}"


def cost_of(*words: str, environ: dict[str, str], timeout_s: float) -> Cost:
    """Run `python WORDS` to its end, from the root of the checkout, with exactly this environment.

    Raises RuntimeError when it fails, with what it printed.
    """
    command = [sys.executable, "-S", "-E", str(_LAUNCHER), sys.executable, *words]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # the command too
            raise
    *lines, last = output.splitlines()
    cost = json.loads(last)
    text = "\n".join(lines)
    if cost.pop("code") != 0:
        raise RuntimeError(f"{' '.join(words)} failed:\n{text[-4000:]}")
    return Cost(**cost, output=text)
