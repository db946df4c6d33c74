"""The image runs no fault: nothing in it can fill the list of observers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from jobs import steps
from tests.support.factories import make_record

ROOT = Path(__file__).parents[3]
#: Whatever could get into an image, or run beside it.
PACKAGES = ("dispatcher", "jobs", "cronjobs", "keda", "console", "deploy")


def test_the_image_has_no_tests() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith(("COPY", "ADD")) for word in line.split()[1:-1]]
    assert {"jobs", "dispatcher", "cronjobs"} <= set(copied)
    assert not [source for source in copied if "test" in source or source in (".", "./", "*")]


def uses_of_observers(path: Path) -> list[ast.AST]:
    return [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Name) and node.id == "observers")
        or (isinstance(node, ast.Attribute) and node.attr == "observers")
        or (isinstance(node, ast.alias) and node.name == "observers")
        or (isinstance(node, ast.Constant) and node.value == "observers")
    ]


def test_no_code_but_tests_fills_the_observers() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if uses_of_observers(path)
    }
    assert users == {"jobs/steps.py"}
    made, read = uses_of_observers(ROOT / "jobs" / "steps.py")
    assert (type(made.ctx), type(read.ctx)) == (ast.Store, ast.Load)  # type: ignore[attr-defined]
    names = {
        node.id
        for node in ast.walk(ast.parse((ROOT / "jobs/steps.py").read_text()))
        if isinstance(node, ast.Name)
    }
    assert not names & {"os", "environ", "importlib", "__import__", "exec", "eval"}


def test_observers_are_told_each_step_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(steps, "observers", [seen.append])
    record = make_record(1)
    steps.reached("claimed")
    steps.mark(record, "applied")
    assert seen == ["claimed", "applied"]
    assert list(record.details["steps"]) == ["applied"]
