"""What kubectl shows of a thing that failed, for the end of an error message."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from deploy.local.errors import CommandError


def shown_by(kubectl: Callable[..., str], commands: Iterable[tuple[str, ...]]) -> str:
    """Return each command with its output; one that fails is shown as its own error."""
    parts = []
    for words in commands:
        try:
            parts.append(f"kubectl {' '.join(words)}\n{kubectl(*words)}")
        except CommandError as exc:
            parts.append(str(exc))
    return "\n".join(parts)
