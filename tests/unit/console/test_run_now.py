"""Ctrl-C in `autolabs schedule run-now`: at whatever moment it comes, the Job that goes on is named."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import console.schedules.run_now
from console.schedules import commands as schedule_commands

JOB = {"metadata": {"name": "checked-now-1"}}
GOES_ON = "autolabs: the Job checked-now-1 goes on; its log: kubectl logs --follow job/checked-now-1"
MAY_GO_ON = GOES_ON.replace("goes on", "may have been made, and then goes on")


def interrupted(*_args: Any, **_options: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def run_now(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Make and follow a Job of nobody; a test interrupts one of the steps."""
    monkeypatch.setattr(schedule_commands, "_cron_jobs", lambda _arguments: SimpleNamespace(namespace="jobs"))
    for name, does in (("job_for", JOB), ("create", None), ("follow", 0)):
        monkeypatch.setattr(console.schedules.run_now, name, lambda *_args, does=does: does)
    given = argparse.Namespace(name="checked", dry_run=False, force=False, no_follow=False)
    return lambda: schedule_commands.run_now(given)


def test_interrupted_while_the_log_comes(
    run_now: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console.schedules.run_now, "follow", interrupted)
    assert run_now() == 130
    assert GOES_ON in capsys.readouterr().err


def test_interrupted_as_soon_as_the_job_is_told_of(
    run_now: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tell(text: str, **options: Any) -> None:
        print(text, **options)
        if "is made" in text:
            raise KeyboardInterrupt

    monkeypatch.setattr(schedule_commands, "print", tell, raising=False)
    assert run_now() == 130
    assert GOES_ON in capsys.readouterr().err


def test_interrupted_before_the_api_server_answered(
    run_now: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console.schedules.run_now, "create", interrupted)
    assert run_now() == 130
    assert MAY_GO_ON in capsys.readouterr().err


def test_a_run_to_its_end_says_its_end(
    run_now: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_now() == 0
    assert "goes on" not in capsys.readouterr().err
