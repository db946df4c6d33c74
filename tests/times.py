"""Print where the time of a test run went, from the junit files that `make test` writes.

    python -m tests.times FILE [FILE ...]

A test's time is that of its set-up (fixtures that it is the first to need), its call and its teardown. Tests
run side by side, so that the sum of a level is more than what one waits for it.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from tests.support.lending import CHANGED

SLOWEST_TESTS, SLOWEST_FILES = 20, 10
#: Steps of a loop whose time says how fast a core is; docs/testing.md has it beside its figures.
LOOP_STEPS = 10_000_000
#: Characters of what a test changed; a dropped table has dozens of lines, a function one long one.
_LONGEST_CHANGE = 80


@dataclass(frozen=True, slots=True)
class Timed:
    """One test, in seconds; `file` is its module, `level` the folder under tests/."""

    name: str
    file: str
    setup_s: float
    call_s: float
    teardown_s: float
    changed: tuple[str, ...]

    @property
    def level(self) -> str:
        return self.file.split("/")[1]

    @property
    def total_s(self) -> float:
        return self.setup_s + self.call_s + self.teardown_s


@dataclass(frozen=True, slots=True)
class Run:
    """One pytest run; `seconds` on the clock."""

    file: Path
    seconds: float
    tests: list[Timed]


def read_run(file: Path) -> Run:
    """Read a junit file of pytest whose tests carry setup_s, call_s and teardown_s."""
    (suite,) = ET.parse(file).getroot().iter("testsuite")  # we wrote it
    cases: dict[tuple[str, str], ET.Element] = {}
    for case in suite.iter("testcase"):
        cases[case.get("classname", ""), case.get("name", "")] = case
    return Run(file, float(suite.get("time", 0)), [_timed(case) for case in cases.values()])


def _timed(case: ET.Element) -> Timed:
    found = [(one.get("name", ""), one.get("value", "")) for one in case.iter("property")]
    seconds = {name: float(value) for name, value in found if name.endswith("_s")}
    return Timed(
        name=case.get("name", ""),
        file=case.get("classname", "").replace(".", "/") + ".py",
        setup_s=seconds.get("setup_s", 0.0),
        call_s=seconds.get("call_s", 0.0),
        teardown_s=seconds.get("teardown_s", 0.0),
        changed=tuple(value for name, value in found if name == CHANGED),
    )


def loop_s() -> float:
    """Return the best time of five runs of a plain loop: how fast a core is just now."""

    def once() -> float:
        began = time.perf_counter()
        for _ in range(LOOP_STEPS):
            pass
        return time.perf_counter() - began

    return min(once() for _ in range(5))


def report(runs: Sequence[Run]) -> str:
    """Return the tables as text."""
    tests = [test for run in runs for test in run.tests]
    clock = ", ".join(f"{run.file.stem} {_minutes(run.seconds)}" for run in runs)
    lines = [
        f"{len(tests)} tests in {_minutes(sum(run.seconds for run in runs))} ({clock})",
        f"machine: Python {platform.python_version()}, {LOOP_STEPS:,} steps of a loop {loop_s():.2f} s",
        *_table("level", tests, lambda test: test.level),
        *_table(f"slowest {SLOWEST_FILES} files", tests, lambda test: test.file, most=SLOWEST_FILES),
        *_table(
            f"slowest {SLOWEST_TESTS} tests",
            tests,
            lambda test: f"{test.file}::{test.name}",
            most=SLOWEST_TESTS,
        ),
    ]
    changed = [f"  {test.file}::{test.name}: {_briefly(test.changed)}" for test in tests if test.changed]
    if changed:
        lines += [
            "",
            f"{len(changed)} tests changed what was lent to them (mended, or thrown away):",
            *changed,
        ]
    return "\n".join(lines)


def _briefly(changes: Sequence[str]) -> str:
    more = f", and {len(changes) - 1} more" if len(changes) > 1 else ""
    first = changes[0] if len(changes[0]) <= _LONGEST_CHANGE else f"{changes[0][:_LONGEST_CHANGE]}…"
    return first + more


def _table(
    title: str, tests: Iterable[Timed], key: Callable[[Timed], str], *, most: int | None = None
) -> list[str]:
    groups = [(name, [*members]) for name, members in groupby(sorted(tests, key=key), key=key)]
    groups.sort(key=lambda group: -sum(test.total_s for test in group[1]))
    heads = ("set-up s", "call s", "teardown s", "sum s", "tests")
    lines = ["", "".join(f"{head:>11}" for head in heads) + f"  {title}"]
    for name, members in groups[:most]:
        parts = [sum(values) for values in zip(*map(_parts, members), strict=True)]
        lines.append(
            "".join(f"{part:>11.1f}" for part in (*parts, sum(parts))) + f"{len(members):>11}  {name}"
        )
    return lines


def _parts(test: Timed) -> tuple[float, float, float]:
    return test.setup_s, test.call_s, test.teardown_s


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Print where the time of a test run went.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a junit file of `make test`")
    files: list[Path] = parser.parse_args(arguments).files
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        print(f"tests.times: no such file: {', '.join(missing)}", file=sys.stderr)
        return 2
    print(report([read_run(file) for file in files]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
