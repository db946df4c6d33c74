"""Processes to be killed, without the second that an interpreter takes to import the same things each time.

They are forks of a server that has imported them and has done nothing else: it has no connection, no thread,
and nothing of the tests' own process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.support.waiting import HANG_S

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.support.forked_imports"])


def _run(program: Callable[..., Any], words: tuple[Any, ...], environ: Mapping[str, str], log: Path) -> None:
    os.environ.clear()
    os.environ.update(environ)
    with log.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    # Those that multiprocessing's own parent ignores.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(program(*words))


@contextmanager
def forked(
    program: Callable[..., Any], *words: Any, environ: Mapping[str, str], log: Path
) -> Iterator[ForkServerProcess]:
    """A process that calls a function, and is gone after the block; what it writes is in `log`."""
    process = _forks.Process(target=_run, args=(program, words, dict(environ), log))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()
        process.close()


def exit_code(process: ForkServerProcess) -> int | None:
    """Wait for the end of a process and return its exit code, that of a signal negative."""
    process.join(2 * HANG_S)
    return process.exitcode
