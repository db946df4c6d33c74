"""`python -m jobs` that looks ten times as often at how many others wait, in no image.

Two that look at the same moment both leave. By chance that is rare with the seconds that a container has, and
not with a tenth of them on a busy machine: here one looks after the other, in turns of the file TEST_TURNS,
and one that leaves is gone before the next looks.
"""

from __future__ import annotations

import fcntl
import os
import runpy

import jobs.container.consumer
from jobs.container.consumer import Consumer

_waiting = Consumer._waiting
_looks = 0


def _waiting_in_turn(self: Consumer) -> int:
    global _looks
    turn = os.open(os.environ["TEST_TURNS"], os.O_CREAT | os.O_RDWR)
    fcntl.flock(turn, fcntl.LOCK_EX)
    waiting = _waiting(self)
    _looks += 1
    # Nobody leaves by the first look. Who leaves has the turn until the process ends.
    if _looks == 1 or waiting <= int(os.environ["SPARES"]):
        os.close(turn)
    return waiting


if __name__ == "__main__":
    shortest_s, longest_s = jobs.container.consumer._SURPLUS_LOOK_S
    jobs.container.consumer._SURPLUS_LOOK_S = (shortest_s / 10, longest_s / 10)
    Consumer._waiting = _waiting_in_turn  # type: ignore[method-assign]  # a test's own patience
    runpy.run_module("jobs", run_name="__main__", alter_sys=True)
