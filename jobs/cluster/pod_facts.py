"""Quote a Pod, its events and its log as evidence: short, printable, without what looks like a secret.

Pure functions on what the API server answered; the shape is that of `details["seen"]` of the ledger.
"""

from __future__ import annotations

import json
from typing import Any

from dispatcher.text import cut, printable, scrubbed
from jobs.cluster.client import Manifest
from jobs.cluster.pod_fields import container_statuses

#: Longest evidence in all, as JSON.
MAX_BYTES = 8192
LOG_LINES = 20
EVENTS = 10
_CONTAINERS = 6
_CONDITIONS = 8
#: Longest message, and longest line of the log, in characters.
_MESSAGE = 400

Seen = dict[str, Any]


def pod_facts(pod: Manifest) -> Seen:
    status, spec = pod.get("status", {}), pod.get("spec", {})
    told = {
        "name": pod["metadata"]["name"],
        "phase": status.get("phase"),
        "reason": status.get("reason"),
        "message": status.get("message"),
        "node": spec.get("nodeName"),
    }
    conditions = [
        _filled({key: condition.get(key) for key in ("type", "status", "reason", "message")})
        for condition in status.get("conditions", [])[:_CONDITIONS]
    ]
    containers = [container_facts(container) for container in container_statuses(pod)[:_CONTAINERS]]
    return _filled({"pod": _filled(told), "conditions": conditions, "containers": containers})


def container_facts(container: Manifest) -> dict[str, Any]:
    """Return a container's state; the exit code is of its last run if this one has none."""
    states: Manifest = container.get("state") or {"waiting": {}}
    state, what = next(iter(states.items()))
    last = container.get("lastState", {}).get("terminated", {})
    facts = _filled(
        {
            "name": container.get("name"),
            "state": state,
            "reason": what.get("reason"),
            "message": what.get("message"),
            "last": _filled({"reason": last.get("reason"), "message": last.get("message")}),
        }
    )
    ended = what if "exitCode" in what else last
    if "exitCode" in ended:
        facts["exit_code"] = int(ended["exitCode"])
    if state == "running":
        facts["ready"] = bool(container.get("ready"))
    return {**facts, "restarts": int(container.get("restartCount", 0))}


def newest_events(events: list[Manifest]) -> list[dict[str, Any]]:
    return [
        {
            "at": _event_time(event),
            "type": short(event.get("type")),
            "reason": short(event.get("reason")),
            "message": short(event.get("message")),
            "count": int(event.get("count") or (event.get("series") or {}).get("count") or 1),
        }
        for event in sorted(events, key=_event_time)[-EVENTS:]
    ]


def log_lines(text: str) -> list[str]:
    """Return the last LOG_LINES; a long one loses its beginning, as the error is at the end."""
    lines = [printable(line) for line in scrubbed(text).splitlines()[-LOG_LINES:]]
    return [line if len(line) <= _MESSAGE else "..." + line[3 - _MESSAGE :] for line in lines]


def most_telling_container(pod: Manifest) -> Manifest | None:
    """Return the container whose log says most, or None if none ever ran.

    One that failed is before one that is only not ready.
    """
    ran = [
        container
        for container in container_statuses(pod)
        if container.get("restartCount") or "waiting" not in (container.get("state") or {"waiting": {}})
    ]

    def interest(container: Manifest) -> tuple[bool, bool]:
        ended = {**container.get("lastState", {}), **container.get("state", {})}.get("terminated", {})
        return ended.get("exitCode", 0) != 0, not container.get("ready")

    return max(ran, key=interest, default=None)


def bounded(seen: Seen) -> Seen:
    """Return a copy that fits MAX_BYTES: without the oldest lines and events, and at last without more."""
    least_telling_first = ("conditions", "containers", "note", "pod")
    seen = json.loads(json.dumps(seen))
    while _size(seen) > MAX_BYTES:
        parts = (seen.get("log", {}).get("lines", []), seen.get("events", []))
        if longest := max(parts, key=_size):
            del longest[0]
        elif not any(seen.pop(part, None) for part in least_telling_first):
            break
    return seen


def summary(seen: Seen) -> str:
    """Return the one line of evidence that an operator wants in the log."""
    parts = [_container_summary(container) for container in seen.get("containers", [])]
    lines = [line for line in seen.get("log", {}).get("lines", []) if line.strip()]
    warnings = [event for event in seen.get("events", []) if event["type"] == "Warning"]
    if lines:
        parts.append(f"last line: {lines[-1]}")
    elif warnings:
        parts.append(f"{warnings[-1]['reason']}: {warnings[-1]['message']}")
    return "; ".join(parts) or seen.get("note") or f"phase {seen.get('pod', {}).get('phase')}"


def short(value: object) -> str:
    """Return a text of somebody else's: scrubbed, printable, of at most 400 characters."""
    # Before it is scrubbed as well: a message may be of any length.
    return cut(printable(scrubbed(str(value or "")[: 4 * _MESSAGE])), _MESSAGE)


def _container_summary(container: dict[str, Any]) -> str:
    reasons = [container.get("reason"), container.get("last", {}).get("reason")]
    words = ["container", container.get("name", ""), container["state"], "/".join(filter(None, reasons))]
    ended = f", exit code {container['exit_code']}" if "exit_code" in container else ""
    silent = ", not ready" if container.get("ready") is False else ""
    return " ".join(filter(None, words)) + silent + ended


def _event_time(event: Manifest) -> str:
    series = event.get("series") or {}
    times = (event.get("lastTimestamp"), series.get("lastObservedTime"), event.get("eventTime"))
    return str(next(filter(None, times), event.get("metadata", {}).get("creationTimestamp", "")))[:40]


def _filled(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: short(value) if isinstance(value, str) else value for key, value in facts.items() if value}


def _size(part: Any) -> int:
    return len(json.dumps(part))
