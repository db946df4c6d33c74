"""The operators' distribution as pip installs it, beside packages of somebody else with the names of ours."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.support.waiting import HANG_S
from tests.support.wheels import ROOT, build_wheel


class Installed:
    """An environment with both distributions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder)  # without pip, which has an option for environments of others
        wheels = [build_wheel(ROOT, folder / "backend"), build_wheel(ROOT / "console", folder / "console")]
        options = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")
        words = ["pip", "--python", str(folder), "install", *options, *map(str, wheels)]
        subprocess.run([sys.executable, "-m", *words], check=True, timeout=2 * HANG_S)
        self.site_packages = Path(
            sysconfig.get_path("purelib", "venv", vars={"base": str(folder), "platbase": str(folder)})
        )

    def run(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.folder / "bin" / program, *words],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
            timeout=HANG_S,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    made = Installed(tmp_path_factory.mktemp("installed"))
    # The libraries are those of .venv; what is installed there otherwise comes last on the path.
    (made.site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for name in ("console", "cronjobs", "jobs", "keda"):
        foreign = made.site_packages / name
        foreign.mkdir()
        (foreign / "__init__.py").write_text(f"raise RuntimeError('{name} of somebody else')\n")
    return made


def test_nothing_but_two_packages_is_put_into_the_environment(installed: Installed) -> None:
    ours = {path.name for path in installed.site_packages.iterdir() if "autolabs" in path.name}
    packages = {name for name in ours if not name.endswith(".dist-info")}
    assert (packages, len(ours)) == ({"autolabs_console"}, 3)
    assert (installed.site_packages / "dispatcher").is_dir()


@pytest.mark.parametrize("words", ["explain", "verify", "dlq list", "schedule apply", "db upgrade"])
def test_every_command_has_its_help(installed: Installed, words: str) -> None:
    done = installed.run("autolabs", *words.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: autolabs {words}")


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ("verify", "AMQP_URL"),
        ("explain 7", "DATABASE_URL"),
        ("dlq list", "AMQP_URL"),
        ("schedule list", "S3_ENDPOINT"),
    ],
)
def test_every_command_runs_to_its_settings(installed: Installed, words: str, missing: str) -> None:
    done = installed.run("autolabs", *words.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert missing in done.stderr
    assert "Traceback" not in done.stderr


def test_manifests_are_rendered_by_the_packages_inside(installed: Installed) -> None:
    words = ("render", "--image", "registry.example.org/jobs:1")
    done = installed.run("python", "-m", "autolabs_console.cronjobs", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("kind: CronJob") == 4
    done = installed.run("python", "-m", "autolabs_console.keda", *words[1:])
    assert (done.returncode, done.stderr) == (0, "")
    assert "kind: ScaledJob" in done.stdout


def test_the_path_of_other_programs_is_as_it_was(installed: Installed) -> None:
    done = installed.run("python", "-c", "import dispatcher, jobs")
    assert done.stderr.splitlines()[-1] == "RuntimeError: jobs of somebody else"
