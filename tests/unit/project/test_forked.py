from __future__ import annotations

import sys
from pathlib import Path

from tests.support.containers.forked import exit_code, forked


def imported() -> int:
    """Called in the fork: 0 if a container's modules were there before it began."""
    return (
        0
        if {"jobs.container.run_task", "jobs.handlers.create", "cronjobs.__main__"} <= sys.modules.keys()
        else 1
    )


def test_a_fork_begins_with_what_a_container_imports(tmp_path: Path) -> None:
    with forked(imported, environ={}, log=tmp_path / "log") as process:
        assert exit_code(process) == 0
