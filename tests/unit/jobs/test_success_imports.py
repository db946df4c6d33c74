"""What only a failure needs is imported when something failed, not for every lab."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
ONLY_OF_FAILURES = {
    "jobs.notify.notifications",
    "jobs.checks.run",
    "jobs.cluster.evidence",
    "jobs.database.notifications",
    "jobs.database.restarts",
    "jobs.handlers.give_up",
    "jobs.cluster.pod_facts",
}


def test_a_lab_that_starts_imports_nothing_of_failed_ones() -> None:
    code = "import jobs.__main__, jobs.container.run_task, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "jobs.container.settle" in loaded
    assert ONLY_OF_FAILURES & set(loaded) == set()
    assert all((ROOT / f"{name.replace('.', '/')}.py").exists() for name in ONLY_OF_FAILURES)
