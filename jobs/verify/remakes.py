"""Judge why objects of labs are not made again: a lab's own fault, or one of the cluster or the templates.

jobs.verify.repairs asks. A refusal that several labs get alike ends none of them: who is to act is told once.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

from jobs.errors import JobError
from jobs.failures import Failure
from jobs.verify.differences import Difference
from jobs.verify.safety_limits import Refusal

#: Errors in a row of one kind of object after which no other is tried: each costs the patience with a blip.
_ROW = {Failure.CLUSTER_REFUSES_ACCESS: 1, Failure.CLUSTER_AWAY: 2}
#: Longest part of the cluster's own words that is told, in characters.
_TOLD = 300


def alike(text: str, one: Difference) -> str:
    """Return a refusal without what is a lab's own: names, numbers, addresses."""
    _, _, name = one.object.partition(" ")
    return re.sub(r"[0-9a-f]*\d[0-9a-f.:-]*", "#", text.replace(name, "*") if name else text)


@dataclass(slots=True)
class Remakes:
    """What one run could not make again."""

    _in_a_row: dict[tuple[str, Failure], int] = field(default_factory=lambda: defaultdict(int))
    _blocked: dict[str, str] = field(default_factory=dict)
    #: (Kind, refusal without names) -> each lab's difference and reason.
    _refused: dict[tuple[str, str], list[tuple[Difference, str]]] = field(default_factory=dict)
    _told: dict[tuple[str, str], list[Difference]] = field(default_factory=dict)

    def blocked(self, kind: str) -> str | None:
        """Return why no object of this kind is tried any more in this run."""
        return self._blocked.get(kind)

    def made(self, kind: str) -> None:
        for key in [key for key in self._in_a_row if key[0] == kind]:
            del self._in_a_row[key]

    def failed(self, kind: str, one: Difference, error: JobError) -> None:
        """Note an error that is not the lab's own: access, server, templates, settings."""
        why = error.evidence or error.sentence
        self.tell(kind, why, [one])
        failure = error.failure
        if isinstance(failure, Failure) and failure in _ROW:
            self._in_a_row[kind, failure] += 1
            if self._in_a_row[kind, failure] >= _ROW[failure]:
                self._blocked[kind] = f"{failure.cause}: {why}"

    def skipped(self, kind: str, one: Difference) -> None:
        self.tell(kind, self._blocked[kind].partition(": ")[2], [one])

    def refused(self, kind: str, one: Difference, why: str) -> None:
        """Keep a refusal for `judged`, which knows whether others got the same."""
        self._refused.setdefault((kind, alike(why, one)), []).append((one, why))

    def judged(self) -> list[tuple[str, Difference, str, int]]:
        """Return kind, difference, reason, and how many labs got this refusal, of all that were refused."""
        judged = []
        for (kind, _), some in self._refused.items():
            labs = len({one.lab for one, _ in some})
            judged += [(kind, one, why, labs) for one, why in some]
        self._refused = {}
        return judged

    def tell(self, kind: str, why: str, some: list[Difference]) -> None:
        """Have the administrator told why objects stay missing."""
        key = kind, alike(why, some[0])
        if key not in self._told:
            self._told[key] = []
        self._told[key] += some

    def refusals(self) -> list[Refusal]:
        """Return what is to be told: one sentence for each kind of object and reason."""
        return [
            _refusal(kind, why, len({one.lab for one in some})) for (kind, why), some in self._told.items()
        ]


def _refusal(kind: str, why: str, labs: int) -> Refusal:
    stay = "RUNNING labs stay" if labs > 1 else "RUNNING lab stays"
    sentence = f"{labs} {stay} without a {kind}, which cannot be made again: {why[:_TOLD]}"
    return Refusal(Failure.CLUSTER_REFUSES_LAB, sentence, {"object_kind": kind, "labs": labs})
