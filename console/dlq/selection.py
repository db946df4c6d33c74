"""Which messages of the dead-letter queue a command is about."""

from __future__ import annotations

from dataclasses import dataclass

from console.dlq.letters import DeadLetter

#: Characters of a key; fewer may mean another message tomorrow.
MIN_PREFIX = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Conditions that a message must fulfil together; of several ids any one. Without any: all."""

    #: Each a task id, or the first characters of a key.
    ids: tuple[str, ...] = ()
    lab: int | None = None
    category: str | None = None
    cause: str | None = None
    task: str | None = None

    def matches(self, letter: DeadLetter) -> bool:
        """Tell whether a message is meant."""
        asked = (
            (self.lab, letter.lab_instance_id),
            (self.category, letter.category),
            (self.cause, letter.cause),
            (self.task, letter.task_name),
        )
        named = not self.ids or any(names(wanted, letter) for wanted in self.ids)
        return named and all(wanted is None or wanted == value for wanted, value in asked)


def names(wanted_id: str, letter: DeadLetter) -> bool:
    """Tell whether an id of a command line is this message's."""
    is_key = len(wanted_id) >= MIN_PREFIX and letter.key.startswith(wanted_id.lower())
    return wanted_id == letter.task_id or is_key
