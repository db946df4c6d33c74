"""What pip puts into an environment: the backend's distribution, and the operators'."""

from __future__ import annotations

import sys
import zipfile
from email.parser import Parser
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tests.support.wheels import ROOT, build_wheel


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("backend"))


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT / "console", tmp_path_factory.mktemp("console"))


def files(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def metadata(wheel: Path, file: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(f".dist-info/{file}")]
        return archive.read(name).decode()


def sources(*folders: str) -> set[str]:
    """Return what a checkout has of some packages, but for what Python and builds leave there."""
    return {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "pyproject.toml"
    }


def test_a_backend_gets_dispatcher_alone_and_all_of_it(backend: Path) -> None:
    assert files(backend) == sources("dispatcher")
    assert {"dispatcher/py.typed", "dispatcher/migrations/script.py.mako"} < files(backend)


def test_a_backend_pays_for_pika_alone(backend: Path) -> None:
    needed = Parser().parsestr(metadata(backend, "METADATA")).get_all("Requires-Dist") or []
    assert [one for one in needed if "extra ==" not in one] == ["pika<2,>=1.3"]


def test_an_operator_gets_all_packages_below_one_name(console: Path) -> None:
    inside = "autolabs_console"
    own = sources("console/src")
    others = sources("console", "cronjobs", "jobs", "keda") - own
    assert files(console) == {f"{inside}/{name}" for name in others} | {
        name.removeprefix("console/src/") for name in own
    }
    defaults = f"{inside}/jobs/config/default_configs"
    assert {f"{defaults}/settings/schedules.yaml", f"{defaults}/manifests/lab-pod-template.yaml"} < files(
        console
    )


def test_the_operators_distribution_is_one_of_the_same_checkout(console: Path) -> None:
    needed = Parser().parsestr(metadata(console, "METADATA")).get_all("Requires-Dist")
    assert needed == [f"autolabs-jobs[jobs] @ {ROOT.as_uri()}"]


@pytest.mark.parametrize("wheel", ["backend", "console"])
def test_either_distribution_brings_the_same_command(wheel: str, request: pytest.FixtureRequest) -> None:
    found = metadata(request.getfixturevalue(wheel), "entry_points.txt")
    assert "[console_scripts]\nautolabs = dispatcher.__main__:main\n" in found


def test_the_console_names_its_commands_by_an_entry_point(console: Path) -> None:
    found = metadata(console, "entry_points.txt")
    assert "[autolabs.commands]\nconsole = autolabs_console:COMMANDS\n" in found
    path = [*sys.path]
    try:
        sys.path.insert(0, str(ROOT / "console/src"))
        commands = EntryPoint("console", "autolabs_console:COMMANDS", "autolabs.commands").load()
    finally:
        sys.path[:] = path
    assert {"dlq", "explain", "schedule", "verify"} < {*commands}
