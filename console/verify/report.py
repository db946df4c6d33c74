"""Hold what a verify found and repaired, and put it into words for people and programs.

console.verify.command fills a Report and prints it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from dispatcher.wording import many, table
from jobs.verify.differences import Difference
from jobs.verify.inventory import Inventory


@dataclass(slots=True)
class Report:
    """The findings, and what became of them; `repaired` is None when nothing was to be repaired."""

    differences: Sequence[Difference]
    inventory: Inventory
    seconds: float
    #: Number of PENDING labs of which nobody can tell whether they are started.
    undecided: int = 0
    #: Index of a difference -> whether it is repaired, and what was done or why not.
    repaired: dict[int, tuple[bool, str]] | None = None
    #: The reason why nothing was repaired although it was asked for.
    refusal: str | None = None
    #: Sentences about what was not looked at, on purpose or not.
    left_out: list[str] = field(default_factory=list)
    #: Name of a server -> where it is, without passwords.
    looked_at: dict[str, str] = field(default_factory=dict)
    #: Number of messages of labs that need them no more, and have not for long.
    unneeded: int = 0

    @property
    def left(self) -> int:
        """Number of differences that are still there."""
        return len(self.differences) - sum(done for done, _ in (self.repaired or {}).values())

    def checked(self) -> dict[str, int]:
        queues = self.inventory.queues
        return {
            "rows": len(self.inventory.rows),
            "objects": len(self.inventory.objects),
            "messages": len(queues.messages) if queues else 0,
        }

    def information(self) -> list[str]:
        """Return sentences about what is worth knowing and no difference."""
        lines = list(self.left_out)
        queues = self.inventory.queues
        if queues is None:
            return lines
        other = sum(1 for message in queues.messages if message.lab is None)
        if other:
            lines.append(f"in the queues, about no lab: {many(other, 'message')}")
        if self.unneeded:
            lines.append(f"in the queues, not needed any more: {many(self.unneeded, 'message')}")
        for queue in queues.held(self.inventory.under_way):
            held, runs = (queues.unacked or {})[queue], self.inventory.under_way.get(queue, 0)
            under_way = f"with {many(runs, 'run')} under way"
            lines.append(f"{queue}: consumers hold {many(held, 'message')}, {under_way}")
        if queues.delayed:
            lines.append(f"on the delay ladder: {many(queues.delayed, 'message')}, not looked into")
        if self.undecided:
            labs = many(self.undecided, "PENDING lab")
            lines.append(f"from what nobody can read: {labs} may be started, or not")
        if queues.dead_letters:
            lines.append(f"in celery.dlq: {many(queues.dead_letters, 'dead letter')} (autolabs dlq list)")
        return lines + [f"not all could be looked at: {gap}" for gap in queues.gaps]

    def as_json(self) -> str:
        done = self.repaired or {}
        queues = self.inventory.queues
        found = {
            "clean": self.left == 0 and not (queues and queues.gaps),
            "differences": [_fields(one, done.get(at)) for at, one in enumerate(self.differences)],
            "refused": self.refusal,
            "information": self.information(),
            "checked": self.checked(),
            "waiting": {
                name: getattr(queues, name) if queues else None
                for name in ("delayed", "dead_letters", "unacked")
            },
            "looked_at": self.looked_at,
            "seconds": round(self.seconds, 2),
        }
        return json.dumps(found, indent=2)

    def as_text(self) -> str:
        lines = _table(self.differences, self.repaired, self.inventory.now) if self.differences else []
        if self.refusal:
            lines.append(f"nothing was repaired: {self.refusal}. Look first; --force repairs all the same.")
        lines += [f"note: {line}" for line in self.information()]
        checked = ", ".join(many(count, name.removesuffix("s")) for name, count in self.checked().items())
        if self.looked_at:
            places = ", ".join(f"{name} {where}" for name, where in self.looked_at.items())
            lines.append(f"looked at {places}")
        queues = self.inventory.queues
        verdict = "nothing of this differs" if queues and queues.gaps else "nothing differs"
        if self.differences:
            left = "" if self.repaired is None else f", {self.left} of them left"
            verdict = f"{many(len(self.differences), 'difference')}{left}"
        return "\n".join([*lines, f"checked {checked} in {self.seconds:.1f} s: {verdict}"])


def _fields(one: Difference, done: tuple[bool, str] | None) -> dict[str, Any]:
    return {
        "kind": one.kind.value,
        "lab_instance_id": one.lab,
        "object": one.object,
        "is": one.seen,
        "should_be": one.expected,
        "since": one.since.isoformat(timespec="seconds") if one.since else None,
        "repair": one.repair.value if one.repair else None,
        "repaired": done[0] if done else None,
        "done": done[1] if done else None,
    }


def _table(
    differences: Sequence[Difference], repaired: dict[int, tuple[bool, str]] | None, now: datetime
) -> list[str]:
    heading = ("LAB", "WHAT DIFFERS", "SINCE", "--repair WOULD" if repaired is None else "REPAIR")
    cells: list[tuple[str, ...]] = [heading]
    for at, one in enumerate(differences):
        would = one.repair.value if one.repair else "do nothing: a person has to look"
        _, done = (repaired or {}).get(at, (False, would))
        cells.append((str(one.lab or "-"), f"{one.object}: {one.seen}", _since(one.since, now), done))
    # Labels and messages are anybody's: it lets no control character reach the terminal.
    return table(cells).splitlines()


def _since(moment: datetime | None, now: datetime) -> str:
    if moment is None:
        return "unknown"
    seconds = max(0, round((now - moment).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
