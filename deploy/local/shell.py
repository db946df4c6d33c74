"""Run a program to its end; a failure becomes one readable error."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.local.errors import CommandError, LocalClusterError


def run(
    argv: Sequence[str | Path],
    *,
    log: Path | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout_s: float = 120,
) -> str:
    """Return what the program printed on stdout; with `log` both streams are also kept there."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise CommandError(words, f"no end after {timeout_s:g} s", _text(exc.stderr), log) from exc
    except OSError as exc:
        raise CommandError(words, f"could not be started: {exc}", "", log) from exc
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as out:
            out.write(f"$ {' '.join(words)}\n{done.stdout}{done.stderr}")
    if done.returncode != 0:
        shown = done.stderr if done.stderr.strip() else done.stdout
        raise CommandError(words, f"exit code {done.returncode}", shown, log)
    return done.stdout


def stream(
    argv: Sequence[str | Path],
    *,
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 3600,
) -> None:
    """Run a long program with its output going to `log` while it works."""
    words = [str(word) for word in argv]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out:
        out.write(f"$ {' '.join(words)}\n")
        out.flush()
        try:
            done = subprocess.run(
                words,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise CommandError(words, str(exc), log.read_text(errors="replace"), log) from exc
    if done.returncode != 0:
        text = log.read_text(errors="replace")
        raise CommandError(words, f"exit code {done.returncode}", text, log)


def wait_until(
    what: str,
    check: Callable[[], str | None],
    *,
    timeout_s: float,
    every_s: float = 0.1,
) -> None:
    """Poll `check` until it returns None; otherwise it returns what is still missing."""
    deadline = time.monotonic() + timeout_s
    while (missing := check()) is not None:
        if time.monotonic() > deadline:
            raise LocalClusterError(f"{what}: not so after {timeout_s:g} s; last seen: {missing}")
        time.sleep(every_s)


def _text(output: bytes | str | None) -> str:
    if isinstance(output, bytes):
        return output.decode(errors="replace")
    return output or ""
