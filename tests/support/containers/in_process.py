"""Programs of ours called in this process, with all that a process of their own would have to itself.

A start of the interpreter costs a second on a busy machine, and proves the same thing each time: one test of
each program does that. What is about the process itself (a kill, Ctrl-C, its memory) starts one.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TextIO
from unittest.mock import patch

from console.__main__ import main as autolabs

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Answer:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


@contextmanager
def alone(environ: Mapping[str, str], *, stdin: TextIO, out: TextIO, err: TextIO) -> Iterator[None]:
    """Give a program its environment, its standard streams, its handlers of the log and of signals."""
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, environ, clear=True))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        stack.enter_context(patch.object(sys, "stdin", stdin))
        stack.enter_context(_handlers_apart())
        yield


@contextmanager
def _handlers_apart() -> Iterator[None]:
    root = logging.getLogger()
    # Programs silence their libraries, and ours, for as long as their process lasts.
    loggers = [root, *map(logging.getLogger, ("pika", "urllib3", "jobs", "dispatcher", "cronjobs"))]
    levels = [logger.level for logger in loggers]
    handlers, signals = root.handlers[:], {number: signal.getsignal(number) for number in _SIGNALS}
    # Emptied first: logging.basicConfig(force=True) closes what it finds, which is pytest's.
    root.handlers[:] = []
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for number, handler in signals.items():
            signal.signal(number, handler)


class _Utf8(io.TextIOWrapper):
    """Standard output, or standard error, in memory."""

    def __init__(self, *, errors: str) -> None:
        self._bytes = io.BytesIO()
        super().__init__(self._bytes, encoding="utf-8", errors=errors, write_through=True)

    def written(self) -> str:
        return self._bytes.getvalue().decode()


def run_command(*words: str, environ: Mapping[str, str], stdin: TextIO | None = None) -> Answer:
    """Run `autolabs` to its end."""
    # As strict as a terminal is: what UTF-8 cannot say must not come to it.
    out, err = _Utf8(errors="strict"), _Utf8(errors="backslashreplace")
    with alone(environ, stdin=stdin or io.StringIO(), out=out, err=err):
        try:
            code = autolabs([*words])
        except SystemExit as exc:  # of argparse
            code = int(exc.code or 0)
    return Answer(code, out.written(), err.written())
