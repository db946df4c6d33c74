"""What the commands raise; `__main__` prints it without a traceback."""

from __future__ import annotations

from pathlib import Path

TAIL_LINES = 25


class LocalClusterError(Exception):
    """Raised when a step cannot be done; the message says what was tried and what was seen."""


class CommandError(LocalClusterError):
    """Raised when a program we ran failed."""

    def __init__(self, argv: list[str], code: int | str, output: str, log: Path | None) -> None:
        self.code = code
        self.output = output
        lines = [f"tried: {' '.join(argv)}", f"result: {code}"]
        if output.strip():
            lines += ["last lines:", *("  | " + line for line in tail(output))]
        if log:
            lines.append(f"whole log: {log}")
        super().__init__("\n".join(lines))


def tail(text: str, count: int = TAIL_LINES) -> list[str]:
    """Return the last lines."""
    return text.rstrip().splitlines()[-count:]


def with_log(message: str, log: Path) -> LocalClusterError:
    """Make an error that shows the end of a log file and says where the rest is."""
    text = log.read_text(errors="replace") if log.exists() else ""
    shown = ["  | " + line for line in tail(text)] or ["  | (nothing was logged)"]
    return LocalClusterError("\n".join([message, "last lines:", *shown, f"whole log: {log}"]))
