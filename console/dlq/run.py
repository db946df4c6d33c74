"""Choose dead letters, requeue or discard them, and print what became of each.

console.dlq.commands opens one run for a command. Choosing and acting look through the queue separately, so
that nothing is held back while somebody decides, and no body has to be kept: only what was chosen is acted
upon, whatever came meanwhile.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from console.dlq import output
from console.dlq.letters import MIN_PREFIX, DeadLetter, Selector
from console.dlq.queue import Browsed, browse
from dispatcher.broker.publisher import Publisher
from dispatcher.broker.topology import DEAD_LETTER_QUEUE
from dispatcher.cli.program import complain
from dispatcher.errors import needs_extra
from dispatcher.settings import BrokerSettings, ServerSettings
from dispatcher.wording import many, printable

with needs_extra("db"):
    from console.dlq.actions import DeadLetterActions, DoneEarlier, Refused
    from dispatcher.engine import open_engine

#: Seconds for a statement: of the audit table, and of looks at one lab.
_STATEMENT_TIMEOUT_S = 10
#: Seconds between lines of progress.
PROGRESS_S = 2.0
_PAST = {"requeue": "requeued", "discard": "discarded"}


@contextmanager
def open_run(
    settings: ServerSettings, *, verb: str, actor: str, force: bool = False, drop_expires: bool = False
) -> Iterator[Run]:
    """Yield a run of a verb; its connections are opened when they are used, and closed at the end."""
    url, name = settings.database_url, "autolabs-dlq"
    with (
        open_engine(url, application_name=name, statement_timeout_s=_STATEMENT_TIMEOUT_S) as engine,
        closing(Publisher(settings.broker, name=f"{name}-requeue")) as publisher,
    ):
        actions = DeadLetterActions(
            engine=engine, publisher=publisher, actor=actor, force=force, drop_expires=drop_expires
        )
        yield Run(settings.broker, actions, verb)


@dataclass(frozen=True, slots=True)
class Run:
    """The servers of one command. Methods raise DispatcherError."""

    broker: BrokerSettings
    actions: DeadLetterActions
    #: requeue or discard; show asks only for what was done earlier.
    verb: str

    def choose(self, selector: Selector) -> list[DeadLetter]:
        chosen: list[DeadLetter] = []

        def look(found: Browsed) -> bool:
            if selector.matches(found.letter):
                chosen.append(found.letter)
            return False

        browse(self.broker, look)
        return chosen

    def pretend(self, chosen: list[DeadLetter]) -> bool:
        """Say what `act` would do; False if it would refuse something."""
        willing = True
        for letter in chosen:
            try:
                if self.verb == "requeue":
                    self.actions.check_requeue(letter)
                print(f"would be {_PAST[self.verb]}: {output.name(letter)}")
            except Refused as exc:
                willing = False
                complain(f"would be refused: {output.name(letter)}: {output.safe(str(exc))}", 1)
        return willing

    def act(self, chosen: list[DeadLetter]) -> bool:
        """Requeue or discard what was chosen; False if something was refused or is gone unexplained."""
        left = Counter(letter.key for letter in chosen)
        done: list[str] = []
        refused: list[str] = []
        told_at = time.monotonic()

        def look(found: Browsed) -> bool:
            nonlocal told_at
            letter = found.letter
            if not left[letter.key]:
                return False
            if time.monotonic() >= told_at + PROGRESS_S:
                told_at = time.monotonic()
                so_far = f"{len(done)} of {many(len(chosen), 'message')} {_PAST[self.verb]}"
                print(f"... {so_far}", file=sys.stderr)
            left[letter.key] -= 1
            try:
                done.append(self._act_on(found))
            except Refused as exc:
                refused.append(f"{output.name(letter)}: {output.safe(str(exc))}")
                return False
            return True

        try:
            browse(self.broker, look)
        finally:
            for line in done:
                print(f"{_PAST[self.verb]}: {line}")
            for line in refused:
                complain(f"refused: {line}", 1)
            print(f"{many(len(done), 'message')} {_PAST[self.verb]}, {len(refused)} refused")
        explained = [self.tell_of_missing(Selector(), key) for key, number in left.items() if number]
        return not refused and all(explained)

    def tell_of_missing(self, selector: Selector, wanted_id: str | None = None) -> bool:
        """Say what was done earlier with what is not in the queue; False if it was not this."""
        missing = output.not_there("that" if wanted_id is None else wanted_id)
        if wanted_id is None and selector == Selector():
            print(f"{DEAD_LETTER_QUEUE} is empty")
            return True
        earlier = self.actions.done_earlier(selector, wanted_id)
        if not earlier:
            short = wanted_id is not None and len(wanted_id) < MIN_PREFIX
            hint = f"; of a key {MIN_PREFIX} characters are needed, at least" if short else ""
            complain(f"{missing}, nor was anything done with it earlier{hint}", 1)
            return False
        print(f"{missing}; earlier:")
        for row in earlier:
            print(f"  {_in_words(row)}")
        # The newest row: what was requeued, came back and was then discarded is not requeued.
        return earlier[0].action == _PAST.get(self.verb)

    def _act_on(self, found: Browsed) -> str:
        if self.verb == "discard":
            self.actions.discard(found)
            return output.name(found.letter)
        return f"{output.name(found.letter)} to {self.actions.requeue(found)}"


def _in_words(row: DoneEarlier) -> str:
    message = output.in_words(row.message_key, row.task_id, row.task_name, row.lab_instance_id)
    when = row.acted_at.isoformat(sep=" ", timespec="seconds")
    return printable(f"{when} {row.action} by {row.actor}: {message}, dead_letter_actions.id {row.id}")
