"""`python -m jobs` that looks ten times as often at how many others wait, in no image."""

from __future__ import annotations

import runpy

import jobs.container.consumer

if __name__ == "__main__":
    shortest_s, longest_s = jobs.container.consumer._SURPLUS_LOOK_S
    jobs.container.consumer._SURPLUS_LOOK_S = (shortest_s / 10, longest_s / 10)
    runpy.run_module("jobs", run_name="__main__", alter_sys=True)
