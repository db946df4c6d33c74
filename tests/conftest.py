"""Levels by folder, and what happens to a level whose servers are not there.

unit and contract need nothing. The others need the servers that `make env` prints; without them they
are left out with a line that says so, and with CI=true that is an error instead.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pytest
from hypothesis import settings

from tests.support.scheduling import Files, put_in_order

pytest_plugins = ["tests.support.lending"]

# A busy machine must not fail a test for its slowness.
settings.register_profile("autolabs", deadline=None, database=None, max_examples=60)
settings.load_profile("autolabs")

TESTS = Path(__file__).parent
SERVERS = (
    "AMQP_URL",
    "RABBITMQ_API_URL",
    "DATABASE_URL",
    "S3_ENDPOINT",
    "S3_ACCESS_KEY",
    "S3_SECRET_KEY",
)
#: Folder under tests/ -> the variables its tests cannot do without.
LEVELS: dict[str, tuple[str, ...]] = {
    "unit": (),
    "contract": (),
    "integration": SERVERS,
    "cluster": (*SERVERS, "KUBECONFIG", "LAB_IMAGE"),
    "e2e": (*SERVERS, "KUBECONFIG", "LAB_IMAGE"),
}
#: Fixture -> the variable that a test with it needs beside those of its level.
FIXTURES = {"redis_url": "REDIS_URL", "job_image": "JOB_IMAGE"}
LEFT_OUT = pytest.StashKey[Counter[tuple[str, str]]]()


@pytest.fixture(autouse=True)
def logging_is_left_as_it_was() -> Iterator[None]:
    """A main that a test calls logs to the captured stream of that test, which is closed afterwards."""
    root = logging.getLogger()
    loggers = [root, *map(logging.getLogger, ("pika", "urllib3", "jobs", "dispatcher"))]
    levels = {logger: logger.level for logger in loggers}
    yield
    for logger, level in levels.items():
        logger.setLevel(level)
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)


@runtime_checkable
class Evidence(Protocol):
    """A fixture value that can say how things stand, for the report of a failed test."""

    def evidence(self) -> str: ...


def level_of(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).parts[0]


def missing_for(item: pytest.Item) -> list[str]:
    used = getattr(item, "fixturenames", ())
    needs = [
        *LEVELS.get(level_of(item), ()),
        *(name for fixture, name in FIXTURES.items() if fixture in used),
    ]
    return [name for name in needs if not os.environ.get(name)]


def pytest_configure(config: pytest.Config) -> None:
    for level, needs in LEVELS.items():
        config.addinivalue_line("markers", f"{level}: needs {', '.join(needs) or 'nothing'}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return Files(config, log) if config.getvalue("dist") == "loadscope" else None


# Before those that shuffle.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if level_of(item) in LEVELS:
            item.add_marker(level_of(item))
    if hasattr(config, "workerinput"):
        put_in_order(items)
    left_out = {item: ", ".join(missing) for item in items if (missing := missing_for(item))}
    if not left_out:
        return
    counts = Counter((level_of(item), missing) for item, missing in left_out.items())
    # A process of pytest-xdist can only report; its parent refuses.
    if not hasattr(config, "workerinput"):
        _refuse_if_required(counts)
    config.stash[LEFT_OUT] = counts
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that reports, if this one only runs tests for it."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = [(*why, count) for why, count in session.config.stash.get(LEFT_OUT, {}).items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a process of pytest-xdist left out; all leave out the same."""
    left_out = getattr(node, "workeroutput", {}).get("left_out", [])
    counts = Counter({(level, unset): count for level, unset, count in left_out})
    _refuse_if_required(counts)
    node.config.stash[LEFT_OUT] = counts


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for (level, unset), count in config.stash.get(LEFT_OUT, Counter()).items():
        terminalreporter.write_line(
            f'left out: {count} {level} tests, because {unset} are not set (eval "$(make -s env)")',
            yellow=True,
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # In the junit file: set-up, call and teardown apart, from which tests/times.py makes its table.
    seconds = (f"{call.when}_s", f"{call.duration:.6f}")
    item.user_properties.append(seconds)
    report.user_properties = [*item.user_properties]
    if report.failed and call.when == "call":
        report.sections += [(name, text) for name, text in _evidence(item)]
    return report


def _evidence(item: pytest.Item) -> Iterator[tuple[str, str]]:
    for name, value in getattr(item, "funcargs", {}).items():
        if isinstance(value, Evidence):
            try:
                yield f"evidence of {name}", value.evidence()
            except Exception as exc:  # the report of the failure itself must not be lost
                yield f"evidence of {name}", f"not available: {exc!r}"


def _refuse_if_required(left_out: Counter[tuple[str, str]]) -> None:
    required = os.environ.get("CI", "").lower() == "true" or "AUTOLABS_REQUIRE_SERVICES" in os.environ
    if left_out and required:
        problems = [f"{level} needs {missing}" for level, missing in left_out]
        raise pytest.UsageError(f"{'; '.join(problems)}: set them as `make env` prints them")
