"""Say what the failure of a task means, and record it, as the handler of the task has it.

jobs.container.settle asks these questions, one after the other, and publishes what follows from the answers.
"""

from __future__ import annotations

from dataclasses import dataclass

from dispatcher.message.envelope import TaskMessage
from jobs.database.ledger import Ending
from jobs.errors import FailureRow, JobError
from jobs.failures import REVOKED, Failure
from jobs.handlers.context import TaskContext


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureOutcome:
    """What a final failure means."""

    error: JobError
    #: True: the message goes to the dead-letter queue once the failure is recorded.
    dead_letter: bool
    #: Seconds for which the lab's objects stay to be looked at, until the task comes back to take them down.
    #: 0: they go now.
    keep_objects_s: int = 0

    @property
    def ending(self) -> Ending:
        """How the run ended, for the ledger."""
        failure = self.error.failure
        if failure is Failure.CANCELLED:
            # Nobody has to act, so there is no category.
            return Ending("revoked", error_message=self.error.sentence, cause=failure.cause)
        if failure in REVOKED:
            return Ending.of_error("revoked", self.error)
        return Ending.of_error("dead_lettered" if self.dead_letter else "failed", self.error)


class FailedTask:
    """A failed task that is about no single lab; the handlers of tasks about one lab have their own class."""

    #: The part of the sentence of a task that is given up that tells people what to expect.
    what_next = "Please start it again later"

    def __init__(self, context: TaskContext, task: TaskMessage, *, dead_lettered: bool) -> None:
        """`dead_lettered`: the broker has put a copy of the message into the dead-letter queue itself."""
        self.context = context
        self.task = task
        self._dead_lettered = dead_lettered
        #: 0: the task is about no lab.
        self.lab_instance_id = context.record.lab_instance_id or 0

    def recorded_dead_letter(self) -> JobError | None:
        """Return the failure of an earlier run of this attempt, whose dead letter may not be published.

        None where the task simply fails again. Raises JobError.
        """
        return None

    def look(self, error: JobError, level: int) -> None:
        """Put what is seen of the lab into the ledger's details, and into the log at a level."""

    def on_failure(self, error: JobError) -> FailureOutcome:
        """Return what a failure means that is final; nothing was recorded or taken down yet."""
        if error.failure in REVOKED:
            dead_letter = False
        elif error.failure is Failure.CONTAINER_CRASHED:
            dead_letter = not self._dead_lettered
        else:
            dead_letter = self.leaves_dead_letter(error.failure)
        return FailureOutcome(error=error, dead_letter=dead_letter)

    def leaves_dead_letter(self, _failure: FailureRow) -> bool:
        """Tell whether somebody has to look at the message, or may want to requeue it."""
        return True

    def record(self, outcome: FailureOutcome) -> int:
        """Commit the failure; return for how many seconds the lab's objects stay. Raises JobError."""
        self.context.labs.record(self.context.record, outcome.ending)
        return 0

    def clean_up(self, outcome: FailureOutcome) -> None:
        """Take down what is left of the lab. Raises JobError: some of it may still be there."""
