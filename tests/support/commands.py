"""`autolabs …` in this process: as the program does it, without the seconds that Python takes to start.

What is about a process itself, as its signals or several at a time, starts one.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest import mock

from dispatcher.__main__ import main


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def run_command(*words: str, environ: Mapping[str, str]) -> Done:
    """Run a command with these variables and no others, and leave the process as it was."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, environ, clear=True),
        _log_levels_kept(),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            code = main([*words])
        except SystemExit as exc:  # of argparse
            code = exc.code if isinstance(exc.code, int) else 1
    return Done(code, out.getvalue(), err.getvalue())


@contextmanager
def _log_levels_kept() -> Iterator[None]:
    # Commands silence the loggers of libraries, as of a process that ends with them.
    loggers = [logging.getLogger(name) for name in (None, "pika", "urllib3", "jobs", "dispatcher")]
    levels = {logger: logger.level for logger in loggers}
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
