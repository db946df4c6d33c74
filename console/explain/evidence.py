"""What was seen last of a lab that failed, as lines: `seen` and `evidence` of a run's details.

Containers wrote them from what Kubernetes, a registry or the lab itself said: any part may be missing,
or be something else than it should be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from console.explain.facts import Run
from dispatcher.terminal import last_lines, one_line

_MAX_CONDITIONS, _MAX_CONTAINERS, _MAX_EVENTS, _MAX_LOG_LINES, _MAX_EVIDENCE_LINES = 3, 3, 4, 6, 4


def seen_lines(run: Run) -> list[str]:
    """Return what was seen; nothing if the run left nothing."""
    seen = _mapping(run.details.get("seen"))
    lines = [*_pod(seen), *_conditions(seen), *_containers(seen), *_events(seen), *_log(seen)]
    if note := _text(seen, "note"):
        lines.append(note)
    evidence = run.details.get("evidence")
    if isinstance(evidence, str):
        lines += [f"evidence: {line}" for line in last_lines(evidence, _MAX_EVIDENCE_LINES)]
    return lines


def _pod(seen: Mapping[str, Any]) -> Iterator[str]:
    pod = _mapping(seen.get("pod"))
    if pod:
        node = f" on {_text(pod, 'node')}" if _text(pod, "node") else ""
        yield _line(f"pod {_text(pod, 'name')}{node}", pod, "phase", "reason")


def _conditions(seen: Mapping[str, Any]) -> Iterator[str]:
    unmet = [found for found in _mappings(seen.get("conditions")) if found.get("status") != "True"]
    for condition in unmet[:_MAX_CONDITIONS]:
        yield _line(f"not {_text(condition, 'type')}", condition, "reason")


def _containers(seen: Mapping[str, Any]) -> Iterator[str]:
    for container in _mappings(seen.get("containers"))[:_MAX_CONTAINERS]:
        code, restarts = container.get("exit_code"), container.get("restarts")
        last = _text(_mapping(container.get("last")), "reason")
        more = [
            *([f"ended before: {last}"] if last else []),
            *([f"exit code {code}"] if isinstance(code, int) else []),
            *([f"restarts {restarts}"] if isinstance(restarts, int) and restarts else []),
        ]
        yield _line(f"container {_text(container, 'name')}", container, "state", "reason", more=more)


def _events(seen: Mapping[str, Any]) -> Iterator[str]:
    for event in _mappings(seen.get("events"))[-_MAX_EVENTS:]:
        count = event.get("count")
        more = [f"{count} times"] if isinstance(count, int) and count > 1 else []
        moment = _text(event, "at")[11:19]
        yield _line(f"event {moment}".rstrip(), event, "type", "reason", more=more)


def _log(seen: Mapping[str, Any]) -> Iterator[str]:
    log = _mapping(seen.get("log"))
    lines = log.get("lines")
    if not isinstance(lines, list) or not lines:
        return
    last = " before its restart" if log.get("previous") is True else ""
    yield f"last lines of container {_text(log, 'container')}{last}:"
    for line in lines[-_MAX_LOG_LINES:]:
        yield f"  | {one_line(str(line), 200)}"


def _line(subject: str, found: Mapping[str, Any], *keys: str, more: list[str] | None = None) -> str:
    parts = [text for key in keys if (text := _text(found, key))] + (more or [])
    # All that the ledger keeps of it: the kubelet says what is wrong at the end.
    message = _text(found, "message", most=400)
    return ": ".join(part for part in (subject, ", ".join(parts), message) if part)


def _text(found: Mapping[str, Any], key: str, *, most: int = 200) -> str:
    value = found.get(key)
    return "" if value is None else one_line(str(value), most)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [found for found in value if isinstance(found, dict)] if isinstance(value, list) else []
