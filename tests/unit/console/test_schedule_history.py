from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from console.access import open_cluster
from console.schedules.history import Run, as_table
from dispatcher.__main__ import main
from dispatcher.errors import InvalidSettings


def shown(result: dict[str, Any], error: str = "") -> str:
    began = datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc)
    run = Run(began, 1.0, "succeeded", "schedule", "sync-1", result, error)
    return as_table([run]).splitlines()[1].partition("sync-1")[2].strip()


def test_what_a_run_found_and_did_comes_first_and_nothing_that_is_0() -> None:
    result = {"rows": 11, "left": 0, "found": {"orphan": 3, "pod_gone": 0}, "repaired": {"orphan": 3}}
    assert shown(result) == "found.orphan=3 repaired.orphan=3 rows=11"


def test_a_dry_run_says_that_it_was_one() -> None:
    assert shown({"dry_run": True, "found": {}, "rows": 2}) == "dry_run=True rows=2"


def test_a_run_that_failed_says_why() -> None:
    assert shown({}, "Too many at once.") == "Too many at once."


def test_a_machine_without_access_to_a_cluster_is_told_which_setting_is_missing() -> None:
    with pytest.raises(InvalidSettings, match="KUBECONFIG: not set"):
        open_cluster({})


@pytest.mark.parametrize("time", ["tomorrow", "2026-03-01T11:00:00"])
def test_an_end_without_its_offset_is_refused_with_what_is_allowed(
    time: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["lab", "extend", "7", "30", "--ends-at", time])
    assert "it must be a time with its offset, such as 2026-" in capsys.readouterr().err
