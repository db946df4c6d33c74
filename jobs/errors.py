"""Failures of a task, split by what happens next, each with a category of the specification."""

from __future__ import annotations

import enum


class Category(str, enum.Enum):
    """Why a task failed, and so who must act."""

    #: The teacher corrects the image of the lab.
    PERMANENT_IMAGE_ERROR = "PERMANENT_IMAGE_ERROR"
    #: The platform's administrator corrects access rights.
    PERMANENT_PERMISSION_ERROR = "PERMANENT_PERMISSION_ERROR"
    #: The request or a template is wrong; who wrote it corrects it.
    PERMANENT_INVALID_REQUEST = "PERMANENT_INVALID_REQUEST"
    #: The cluster has no room now.
    TEMPORARY_RESOURCE_ERROR = "TEMPORARY_RESOURCE_ERROR"
    #: A service did not answer.
    TEMPORARY_NETWORK_ERROR = "TEMPORARY_NETWORK_ERROR"


def _storable(text: str) -> str:
    """Escape what PostgreSQL takes neither as text nor as jsonb: NUL and lone surrogates."""
    return text.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()


class JobError(Exception):
    """Base: `sentence` is for the student and the teacher, `evidence` for operators."""

    def __init__(self, category: Category, sentence: str, *, evidence: str = "") -> None:
        sentence, evidence = _storable(sentence), _storable(evidence)
        super().__init__(f"{sentence} [{evidence}]" if evidence else sentence)
        self.category = category
        self.sentence = sentence
        self.evidence = evidence[:2000]


class PermanentError(JobError):
    """Raised when trying again is useless."""


class TransientError(JobError):
    """Raised when the task may succeed later; it is published again with a delay."""
