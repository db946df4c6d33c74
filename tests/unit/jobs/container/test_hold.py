"""A container that cannot work holds for a while: until a stop, a new Secret, or a broker that takes us."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from dispatcher.settings import Environment
from jobs.container.hold import hold, hold_s


def held_s(stop: threading.Event, secrets_dir: Path, **mended: bool) -> float:
    began = time.monotonic()
    asked = (lambda: mended["mended"]) if mended else None
    hold(stop, 5, asked, secrets_dir=secrets_dir, look_s=0.05)
    return time.monotonic() - began


def test_a_stop_ends_it_at_once(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    assert held_s(stop, tmp_path) < 1


def test_another_content_of_the_secret_ends_it(tmp_path: Path) -> None:
    (tmp_path / "..data").symlink_to("..one")

    def write_secret() -> None:
        (tmp_path / "..data_tmp").symlink_to("..two")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    timer = threading.Timer(0.2, write_secret)
    timer.start()
    assert 0.1 < held_s(threading.Event(), tmp_path) < 3
    timer.join()


def test_a_broker_that_takes_us_ends_it(tmp_path: Path) -> None:
    assert held_s(threading.Event(), tmp_path, mended=True) < 1


def test_it_ends_by_itself(tmp_path: Path) -> None:
    began = time.monotonic()
    hold(threading.Event(), 0.3, lambda: False, secrets_dir=tmp_path, look_s=0.05)
    assert 0.3 <= time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, 60),
        ({"SPARES": "4"}, 240),
        ({"SPARES": "400"}, 600),
        ({"FAULT_WAIT_S": "0", "SPARES": "4"}, 0),
        ({"FAULT_WAIT_S": "x", "SPARES": "x"}, 60),
    ],
)
def test_spares_of_a_queue_together_end_once_a_minute(
    environ: dict[str, str], expected: float, tmp_path: Path
) -> None:
    assert hold_s(Environment(environ, tmp_path)) == expected
