"""Errors of a task, split by what happens next; jobs.failures has the table of all that can fail."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

from dispatcher.failure_contract import Audience, Category
from dispatcher.text import scrubbed, without_passwords

#: Longest evidence, and longest sentence, that is kept, in characters.
MAX_EVIDENCE = 2000
#: Characters that are searched for secrets; a message of a kubelet or of a registry may be of any length.
_SEARCHED = 4 * MAX_EVIDENCE
#: End of the sentence of an error that is tried again; `jobs.failures.given_up` puts another in its place.
AGAIN = "; it is tried again by itself."


def storable(text: str) -> str:
    """Escape what PostgreSQL takes neither as text nor as jsonb: NUL and lone surrogates."""
    return text.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()


class Row(NamedTuple):
    """A row of the table of failures."""

    category: Category
    #: True: another attempt may succeed.
    retry: bool
    #: People who are told once the lab is FAILED.
    audience: Audience
    #: For the student; {names} are filled in by `error`. What is tried again has no full stop: `error` and
    #: `given_up` say how it goes on.
    sentence: str


class FailureRow(enum.Enum):
    """Base of the table, without rows: what a row answers."""

    _value_: Row

    @property
    def cause(self) -> str:
        """The row's name as ledger, notifications and log write it."""
        return self.name.lower()

    @property
    def category(self) -> Category:
        return self._value_.category

    @property
    def retry(self) -> bool:
        return self._value_.retry

    @property
    def audience(self) -> Audience:
        return self._value_.audience

    def error(self, *, evidence: str = "", **values: Any) -> JobError:
        """Return the error to raise; `values` fill the sentence."""
        sentence = self._value_.sentence.format(**values)
        if self.retry:
            return TransientError(self, sentence + AGAIN, evidence=evidence)
        return PermanentError(self, sentence, evidence=evidence)


class JobError(Exception):
    """Base: `sentence` is for the student and the teacher, `evidence` for operators.

    Made by `FailureRow.error`, which fills the row's sentence.
    """

    def __init__(self, failure: FailureRow, sentence: str, *, evidence: str = "") -> None:
        sentence = storable(without_passwords(sentence[:_SEARCHED]))[:MAX_EVIDENCE]
        evidence = storable(scrubbed(evidence[:_SEARCHED]))[:MAX_EVIDENCE]
        super().__init__(f"{sentence} [{evidence}]" if evidence else sentence)
        self.failure = failure
        self.sentence = sentence
        self.evidence = evidence

    @property
    def category(self) -> Category:
        return self.failure.category

    def log_fields(self, action: str) -> dict[str, str]:
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
