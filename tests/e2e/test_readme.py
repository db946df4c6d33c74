"""The README's commands and code do what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.demo.platform import Platform

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def _commands() -> list[str]:
    lines = "".join(_blocks("console")).splitlines()
    return [line.split("  #", 1)[0].strip() for line in lines if line.strip()]


@pytest.mark.parametrize("block", _blocks("python"), ids=["dispatcher", "celery"])
def test_the_python_of_the_readme_runs(platform: Platform, started: list[int], block: str) -> None:
    lab_instance_id = platform.add_lab()
    started.append(lab_instance_id)
    url, image = os.environ["AMQP_URL"], platform.lab_image
    code = block.replace("123", str(lab_instance_id))
    code = re.sub(r'"amqp://[^"]*"', repr(url), code)
    code = re.sub(r'"postgresql://[^"]*"', repr(os.environ["DATABASE_URL"]), code)
    code = re.sub(r'"registry\.[^"]*"', repr(image), code)
    assert code.count(str(lab_instance_id)) >= 1
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)
    if "delete_lab" not in code:
        platform.wait_for_status(lab_instance_id, "RUNNING")
        platform.dispatcher.delete_lab(lab_instance_id=lab_instance_id, force=True)
    platform.wait_for_status(lab_instance_id, "STOPPED")


def test_the_commands_of_the_readme_run(
    platform: Platform, start_lab: Callable[..., tuple[int, str]]
) -> None:
    lab_instance_id, _ = start_lab()
    platform.wait_for_status(lab_instance_id, "RUNNING")
    job_name = platform.runs(lab_instance_id)[0]["job_name"]
    commands = _commands()
    assert len(commands) >= 6
    for command in commands:
        # These two start and end clusters; that they are targets is enough here.
        shown = (
            command.replace("make ", "make --dry-run ") if command in ("make demo", "make test") else command
        )
        shown = re.sub(r"\bLAB\b", str(lab_instance_id), shown.replace("JOB_NAME", job_name))
        done = subprocess.run(
            ["bash", "-euc", shown], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{shown}: {done.stdout}{done.stderr}"
        assert done.stdout or command.startswith("eval"), f"{shown} prints nothing"
