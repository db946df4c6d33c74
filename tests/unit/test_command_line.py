"""`autolabs` as a whole: what every command has in common."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dispatcher.__main__ import make_parser

ROOT = Path(__file__).parents[2]


def run(*words: str, first: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command with a folder in front of all others."""
    paths = os.pathsep.join([str(first), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-c", "import sys; from dispatcher.__main__ import main; sys.exit(main())", *words],
        cwd=first,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": paths, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with a package `jobs` of somebody else, which cannot even be imported."""
    package = tmp_path / "jobs"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('the backend is not set up')")
    return tmp_path


@pytest.mark.parametrize("words", [("--help",), ("dlq", "list", "--help"), ("task", "status", "--help")])
def test_a_package_of_the_same_name_breaks_no_other_command(foreign: Path, words: tuple[str, ...]) -> None:
    done = run(*words, first=foreign)
    assert (done.returncode, done.stderr) == (0, "")
    assert "not set up" in run("verify", first=foreign).stderr


@pytest.mark.parametrize(
    "words", [("verify",), ("verify", "no-option"), ("schedule", "list", "--json"), ("schedule",)]
)
def test_a_backend_alone_is_told_where_the_platforms_commands_are(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    shutil.copytree(ROOT / "dispatcher", tmp_path / "dispatcher")
    done = subprocess.run(
        [sys.executable, "-m", "dispatcher", *words],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"autolabs: {words[0]} needs ")
    assert done.stderr.endswith(", which is in the platform's image and in a checkout\n")


def test_the_help_says_of_verify_what_verify_says() -> None:
    # The short one is written down, so that nothing is imported for it.
    assert make_parser("").format_help() == make_parser().format_help()
    assert {"verify", "schedule"} <= set(make_parser("").format_help().split())
