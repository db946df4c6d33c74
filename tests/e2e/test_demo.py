"""`make demo` tells the story, and leaves no lab, also to whoever does not want to hear the end."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.demo.platform import Platform
from tests.support.containers.ctrl_c import HEARS_CTRL_C

ROOT = Path(__file__).parents[2]


def begin() -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    demo = [*HEARS_CTRL_C, sys.executable, "-u", "-m", "deploy.demo"]
    return subprocess.Popen(demo, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def read_until_asked_for(demo: subprocess.Popen[str]) -> int:
    """Return the lab that the demo has asked for."""
    assert demo.stdout
    for line in demo.stdout:
        if found := re.search(r"lab (\d+) is PENDING", line):
            return int(found[1])
    raise AssertionError(f"no lab was asked for: {demo.communicate()}")


@pytest.mark.timeout(180)
def test_the_demo_ends_well() -> None:
    demo = begin()
    out, errors = demo.communicate(timeout=150)
    assert (demo.returncode, errors) == (0, ""), out
    assert "demo done in" in out


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["Ctrl-C", "a closed pipe"])
def test_a_demo_that_is_left_takes_its_lab_with_it(platform: Platform, started: list[int], how: str) -> None:
    demo = begin()
    lab = read_until_asked_for(demo)
    started.append(lab)
    assert demo.stdout
    if how == "Ctrl-C":
        demo.send_signal(signal.SIGINT)
    demo.stdout.close()
    _, errors = demo.communicate(timeout=60)
    assert "Traceback" not in errors
    assert f"lab {lab} is stopped as well" in errors
    assert demo.returncode == (130 if how == "Ctrl-C" else 1)
    platform.wait_for_status(lab, "STOPPED")
