from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import times

ROOT = Path(__file__).parents[3]


@pytest.fixture
def junit(tmp_path: Path) -> Path:
    """What pytest writes for one file of this level."""
    file = tmp_path / "one-run.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "tests/unit/dispatcher/test_quantities.py",
        f"--junitxml={file}",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return file


def test_each_test_has_its_set_up_call_and_teardown(junit: Path) -> None:
    run = times.read_run(junit)
    assert run.tests
    assert {test.level for test in run.tests} == {"unit"}
    assert all(0 < test.total_s <= run.seconds for test in run.tests)
    assert all(test.call_s > 0 and test.setup_s > 0 for test in run.tests)


def test_the_report_has_levels_files_tests_and_what_was_changed(tmp_path: Path) -> None:
    file = tmp_path / "side-by-side.xml"
    properties = [("setup_s", "1.5"), ("call_s", "60.0"), ("teardown_s", "0.5")]
    properties += [("changed", f"queues x{'x' * 90} is gone"), ("changed", "exchanges y was left")]
    listed = "".join(f'<property name="{name}" value="{value}"/>' for name, value in properties)
    case = '<testcase classname="tests.integration.test_a" name="test_b[c]" time="62">'
    file.write_text(
        f'<testsuites><testsuite time="61.7">{case}<properties>{listed}</properties></testcase>'
        "</testsuite></testsuites>"
    )
    report = times.report([times.read_run(file)])
    assert "1 tests in 1 min 01 s (side-by-side 1 min 01 s)" in report
    for name in ("integration", "tests/integration/test_a.py", "tests/integration/test_a.py::test_b[c]"):
        assert f"        1.5       60.0        0.5       62.0          1  {name}\n" in report
    assert report.endswith(f"  tests/integration/test_a.py::test_b[c]: queues {'x' * 73}…, and 1 more")


def test_a_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert times.main(["nothing.xml"]) == 2
    assert capsys.readouterr().err == "tests.times: no such file: nothing.xml\n"
