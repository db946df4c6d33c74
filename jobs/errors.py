"""Failures of a task, split by what happens next; jobs.failures has the table of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatcher.failure_contract import Category
from dispatcher.text import scrubbed, without_passwords

if TYPE_CHECKING:
    from jobs.failures import Failure

#: Characters of evidence, and of a sentence, that are kept.
MAX_EVIDENCE = 2000
#: Characters that are searched for secrets; a message of a kubelet or of a registry may be of any length.
_SEARCHED = 4 * MAX_EVIDENCE


def storable(text: str) -> str:
    """Escape what PostgreSQL takes neither as text nor as jsonb: NUL and lone surrogates."""
    return text.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()


class JobError(Exception):
    """Base: `sentence` is for the student and the teacher, `evidence` for operators.

    Made by `Failure.error`, which fills the row's sentence.
    """

    def __init__(self, failure: Failure, sentence: str, *, evidence: str = "") -> None:
        sentence = storable(without_passwords(sentence[:_SEARCHED]))[:MAX_EVIDENCE]
        evidence = storable(scrubbed(evidence[:_SEARCHED]))[:MAX_EVIDENCE]
        super().__init__(f"{sentence} [{evidence}]" if evidence else sentence)
        self.failure = failure
        self.sentence = sentence
        self.evidence = evidence

    @property
    def category(self) -> Category:
        """Why, as `error_category` says it."""
        return self.failure.category

    def log_fields(self, action: str) -> dict[str, str]:
        """Return the fields of a line in the log that speaks of the error."""
        return {
            "action": action,
            "error_category": self.category.value,
            "cause": self.failure.cause,
            "evidence": self.evidence,
        }


class PermanentError(JobError):
    """Raised when trying again is useless."""


class TransientError(JobError):
    """Raised when the task may succeed later; it is published again with a delay."""


class ObjectsLeft(TransientError):
    """Raised when the lab is over and only its objects are left; the task comes back as often as it takes."""
