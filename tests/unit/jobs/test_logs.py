from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


def logged_by(code: str) -> list[dict[str, Any]]:
    """Run the code as a container would, without a locale, and return its log lines."""
    start = "import logging\nfrom jobs import logs\nlogs.configure('INFO')\nlog = logging.getLogger('a')\n"
    # Python 3.11 coerces the C locale to UTF-8 unless told not to.
    environ = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", start + code]
    result = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, check=True)
    assert result.stderr == b""
    return [json.loads(line) for line in result.stdout.split(b"\n") if line]


def test_each_record_is_one_json_line_with_its_task() -> None:
    (line,) = logged_by(
        "logs.set_task(task_id='t-1', lab_instance_id=7)\n"
        "log.info('lab\\n%s', '\\u043b', extra={'action': 'lab_running', 'elapsed_s': 1.5})"
    )
    assert line.pop("ts").endswith("+00:00")
    assert line == {
        "level": "INFO",
        "message": "lab\nл",
        "task_id": "t-1",
        "lab_instance_id": 7,
        "action": "lab_running",
        "elapsed_s": 1.5,
    }


def test_every_line_carries_the_task_and_an_early_one_a_null() -> None:
    lines = logged_by("log.warning('early'); logs.set_task(task_id='t'); log.info('a'); log.error('b')")
    assert [line["task_id"] for line in lines] == [None, "t", "t"]


@pytest.mark.parametrize(("length", "shown"), [(255, "t" * 255), (256, "t" * 252 + "...")])
def test_a_long_id_does_not_fill_the_log(length: int, shown: str) -> None:
    lines = logged_by(f"logs.set_task(task_id='t' * {length}, attempt=7); log.info('a'); log.info('b')")
    assert [(line["task_id"], line["attempt"]) for line in lines] == [(shown, 7)] * 2


def test_a_traceback_stays_on_its_line() -> None:
    (line,) = logged_by("try:\n    raise ValueError('why')\nexcept ValueError:\n    log.exception('failed')")
    assert line["traceback"].endswith("ValueError: why")
    assert "\n" in line["traceback"]


@pytest.mark.parametrize(
    "value", ["object()", r"b'\xff'", "{1}", r"'\ud800'", r"'\u2028'", "{2: {2}}", r"'\u041b'", "None"]
)
def test_no_value_can_lose_a_line(value: str) -> None:
    (line,) = logged_by(f"log.info('odd %s', {value}, extra={{'value': {value}}})")
    assert line["message"].startswith("odd ")
    assert "value" in line


def test_the_chatter_of_libraries_is_off() -> None:
    code = "logging.getLogger('pika.x').error('trace'); logging.getLogger('urllib3.x').warning('retrying')"
    assert logged_by(code) == []
