"""Processes to be killed, without the second that an interpreter takes to import the same things each time.

They are forks of a server that has imported them and has done nothing else: it has no connection, no thread,
and nothing of the tests' own process.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.support.waiting import HANG_S

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.support.containers.forked_imports"])


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


def _run_module(module: str, words: tuple[str, ...], folder: Path) -> None:
    os.chdir(folder)
    sys.argv[:] = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class ForkedModule:
    """`python -m MODULE WORDS` as a fork; it is waited for and ended as a `subprocess.Popen` is."""

    def __init__(self, module: str, *words: str, environ: Mapping[str, str], log: Path, folder: Path) -> None:
        arguments = (_run_module, (module, words, folder), dict(environ), log)
        self._name = module
        self._process = _forks.Process(target=_run, args=arguments, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        if self._process.pid is None:
            raise RuntimeError(f"{self._name} was not started")
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, that of a signal negative, or None."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raises TimeoutExpired."""
        self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(self._name, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
