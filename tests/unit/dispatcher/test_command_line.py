"""`autolabs` as a whole: which commands it has, by what is installed beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from console.commands import COMMANDS
from dispatcher.cli import program

ROOT = Path(__file__).parents[3]
OPERATORS = ("dlq", "explain", "schedule", "verify")


def run(
    *words: str, module: str = "dispatcher", interpreter: tuple[str, ...] = (), paths: tuple[Path, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a command with the first of some folders in front of all that is installed."""
    return subprocess.run(
        [sys.executable, *interpreter, "-m", module, *words],
        cwd=paths[0] if paths else ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def distribution(folder: Path, module: str, text: str, *, value: str) -> Path:
    """Write what pip leaves of a distribution that names commands."""
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[autolabs.commands]\nany = {value}\n")
    (folder / f"{module}.py").write_text(text)
    return folder


@pytest.fixture
def backend(tmp_path: Path) -> Path:
    """A folder with what a backend installs, and nothing else of ours."""
    shutil.copytree(ROOT / "dispatcher", tmp_path / "dispatcher")
    return tmp_path


@pytest.mark.parametrize("words", [(), ("--repair", "7"), ("no-option", "--json"), ("--help",)])
@pytest.mark.parametrize("command", OPERATORS)
def test_a_backend_alone_is_told_what_has_the_operators_commands(
    backend: Path, command: str, words: tuple[str, ...]
) -> None:
    # Without site-packages, where this checkout may be installed.
    done = run(command, *words, interpreter=("-S",), paths=(backend,))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"autolabs: {command} is a command of autolabs-console:"
        " use the console image, or in a checkout python3 -m console or pipx install ./console\n"
    )


def test_a_backends_help_says_where_more_commands_are(backend: Path) -> None:
    done = run("--help", interpreter=("-S",), paths=(backend,))
    assert (done.returncode, done.stderr) == (0, "")
    more = "More commands (dlq, explain, schedule, verify) come with autolabs-console"
    assert more in " ".join(done.stdout.split())


def test_an_installed_distribution_adds_its_commands(backend: Path) -> None:
    module = """
from dispatcher.cli.program import Command
def run(arguments):
    \"\"\"Greet.\"\"\"
    print("hello")
    return 7
COMMANDS = {"greet": Command(run)}
"""
    folder = distribution(backend, "greeter", module, value="greeter:COMMANDS")
    assert "greet" in run("--help", interpreter=("-S",), paths=(folder,)).stdout
    done = run("greet", interpreter=("-S",), paths=(folder,))
    assert (done.returncode, done.stdout, done.stderr) == (7, "hello\n", "")


@pytest.mark.parametrize("words", [("outbox", "list", "--help"), ("task", "status", "--help"), ("--help",)])
def test_a_broken_distribution_breaks_no_command_of_a_backend(backend: Path, words: tuple[str, ...]) -> None:
    folder = distribution(backend, "broken", "raise RuntimeError('not set up')", value="broken:COMMANDS")
    done = run(*words, interpreter=("-S",), paths=(folder,))
    assert (done.returncode, done.stderr) == (0, "")
    assert "not set up" in run("verify", interpreter=("-S",), paths=(folder,)).stderr


@pytest.mark.parametrize("module", ["dispatcher", "console"])
@pytest.mark.parametrize("words", [("verify",), ("explain",), ("dlq", "list"), ("schedule", "apply")])
def test_a_checkout_with_the_metadata_has_all_commands_by_either_module(
    tmp_path: Path, module: str, words: tuple[str, ...]
) -> None:
    # As the console image has it: manifests and habits that say `python3 -m dispatcher verify` go on.
    project = tomllib.loads((ROOT / "console/pyproject.toml").read_text())["project"]
    (value,) = project["entry-points"]["autolabs.commands"].values()
    distribution(tmp_path, "unused", "", value=value)
    done = run(*words, "--help", module=module, paths=(ROOT, ROOT / "console/src", tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: autolabs {' '.join(words)}")


def test_the_commands_of_backends_and_operators_are_told_apart() -> None:
    assert {*COMMANDS} == {*program.COMMANDS, *OPERATORS}
    assert not {*program.COMMANDS} & {*OPERATORS}
