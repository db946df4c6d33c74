"""Wheels of this checkout, built without an index by the hatchling of .venv."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build_wheel(project: Path, folder: Path) -> Path:
    """Build the wheel of a project into a folder and return it."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    (wheel,) = folder.glob("*.whl")
    return wheel
