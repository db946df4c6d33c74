"""`python -m jobs` with a fault at one of its steps; like all tests, this is in no image.

TEST_FAULT is `fault:step`. The faults: `kill` ends the process with SIGKILL; `term` sends it SIGTERM and
lets nothing more be done, `drain` sends it SIGTERM and the task goes on meanwhile; `stop` halts the
process with SIGSTOP; `meet` waits at the step until TEST_MEET containers are there, by files in the folder
TEST_MEET_IN. Without TEST_FAULT it is `python -m jobs`.
"""

from __future__ import annotations

import logging
import os
import runpy
import signal
import threading
import time
from pathlib import Path

from jobs import steps

logger = logging.getLogger("fault")

_SIGNALS = {
    "kill": signal.SIGKILL,
    "term": signal.SIGTERM,
    "drain": signal.SIGTERM,
    "stop": signal.SIGSTOP,
}


def _observe(fault: str, step: str) -> None:
    logger.warning("%s at %s", fault, step, extra={"action": "fault", "fault": fault, "step": step})
    if fault == "meet":
        _meet(Path(os.environ["TEST_MEET_IN"]), int(os.environ["TEST_MEET"]))
        return
    # To this very thread: another one's signal would let it go on for a moment, into a transaction.
    signal.pthread_kill(threading.get_ident(), _SIGNALS[fault])
    if fault == "term" and threading.current_thread() is not threading.main_thread():
        threading.Event().wait()


def _meet(folder: Path, count: int) -> None:
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + 30
    while len(list(folder.iterdir())) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"fewer than {count} containers came to {folder}")
        time.sleep(0.002)


def _install(fault_at_step: str) -> None:
    fault, _, wanted = fault_at_step.partition(":")
    left = [wanted]

    def observer(step: str) -> None:
        if step in left:
            left.clear()
            _observe(fault, step)

    steps.observers.append(observer)


if __name__ == "__main__":
    if "TEST_FAULT" in os.environ:
        _install(os.environ["TEST_FAULT"])
    runpy.run_module("jobs", run_name="__main__", alter_sys=True)
