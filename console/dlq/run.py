"""One run of `autolabs dlq requeue` or `discard`: choose, act, and say what became of each message.

Choosing and acting look through the queue separately, so that nothing is held back while somebody
decides, and no body has to be kept: only what was chosen is acted upon, whatever came meanwhile.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from types import TracebackType

from console.dlq import output
from console.dlq.letters import MIN_PREFIX, SHOWN_KEY, DeadLetter, Selector
from console.dlq.queue import Found, look_through
from dispatcher.broker.publisher import Publisher
from dispatcher.broker.topology import DEAD_LETTER_QUEUE
from dispatcher.errors import needs_extra
from dispatcher.settings import ServerSettings
from dispatcher.text import scrubbed
from dispatcher.wording import many, printable

with needs_extra("db"):
    from console.dlq.actions import DeadLetterActions, DoneEarlier, Refused, done_earlier
    from dispatcher.engine import make_engine

#: Seconds for a statement: of the audit table, and of looks at one lab.
_STATEMENT_TIMEOUT_S = 10
#: Seconds between lines of progress.
PROGRESS_S = 2.0
_PAST = {"requeue": "requeued", "discard": "discarded"}


class Run:
    """The servers of one command; use as a context manager. Methods raise DispatcherError."""

    def __init__(
        self, settings: ServerSettings, *, verb: str, actor: str, force: bool, drop_expires: bool
    ) -> None:
        self._settings = settings
        self._verb = verb
        self._engine = make_engine(
            settings.database_url, application_name="autolabs-dlq", statement_timeout_s=_STATEMENT_TIMEOUT_S
        )
        self._publisher = Publisher(settings.broker, name="autolabs-dlq-requeue")
        self._actions = DeadLetterActions(
            self._engine, self._publisher, actor=actor, force=force, drop_expires=drop_expires
        )

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._publisher.close()
        self._engine.dispose()

    def choose(self, selector: Selector) -> list[DeadLetter]:
        """Return the messages that a selector means."""
        chosen: list[DeadLetter] = []

        def look(found: Found) -> bool:
            if selector.matches(found.letter):
                chosen.append(found.letter)
            return False

        look_through(self._settings.broker, look)
        return chosen

    def pretend(self, chosen: list[DeadLetter]) -> bool:
        """Say what `act` would do; False if it would refuse something."""
        willing = True
        for letter in chosen:
            try:
                if self._verb == "requeue":
                    self._actions.check_requeue(letter)
                print(f"would be {_PAST[self._verb]}: {output.name(letter)}")
            except Refused as exc:
                willing = False
                _complain(f"would be refused: {output.name(letter)}: {output.safe(str(exc))}")
        return willing

    def act(self, chosen: list[DeadLetter]) -> bool:
        """Requeue or discard what was chosen; False if something was refused or is gone unexplained."""
        left = Counter(letter.key for letter in chosen)
        done: list[str] = []
        refused: list[str] = []
        told_at = time.monotonic()

        def look(found: Found) -> bool:
            nonlocal told_at
            letter = found.letter
            if not left[letter.key]:
                return False
            if time.monotonic() >= told_at + PROGRESS_S:
                told_at = time.monotonic()
                _progress(f"{len(done)} of {many(len(chosen), 'message')} {_PAST[self._verb]}")
            left[letter.key] -= 1
            try:
                done.append(self._act_on(found))
            except Refused as exc:
                refused.append(f"{output.name(letter)}: {output.safe(str(exc))}")
                return False
            return True

        try:
            look_through(self._settings.broker, look)
        finally:
            for line in done:
                print(f"{_PAST[self._verb]}: {line}")
            for line in refused:
                _complain(f"refused: {line}")
            print(f"{many(len(done), 'message')} {_PAST[self._verb]}, {len(refused)} refused")
        explained = [self.tell_of_missing(Selector(), key) for key, number in left.items() if number]
        return not refused and all(explained)

    def tell_of_missing(self, selector: Selector, wanted_id: str | None = None) -> bool:
        """Say what was done earlier with what is not in the queue; False if it was not this."""
        what = "that" if wanted_id is None else printable(wanted_id)
        if wanted_id is None and selector == Selector():
            print(f"{DEAD_LETTER_QUEUE} is empty")
            return True
        earlier = done_earlier(self._engine, selector, wanted_id)
        if not earlier:
            short = wanted_id is not None and len(wanted_id) < MIN_PREFIX
            hint = f"; of a key {MIN_PREFIX} characters are needed, at least" if short else ""
            _complain(
                f"nothing in {DEAD_LETTER_QUEUE} is {what}, nor was anything done with it earlier{hint}"
            )
            return False
        print(f"nothing in {DEAD_LETTER_QUEUE} is {what}; earlier:")
        for row in earlier:
            print(f"  {_told(row)}")
        # The newest row: what was requeued, came back and was then discarded is not requeued.
        return earlier[0].action == _PAST.get(self._verb)

    def _act_on(self, found: Found) -> str:
        if self._verb == "discard":
            self._actions.discard(found)
            return output.name(found.letter)
        return f"{output.name(found.letter)} to {self._actions.requeue(found)}"


def _told(row: DoneEarlier) -> str:
    lab = "" if row.lab_instance_id is None else f" of lab {row.lab_instance_id}"
    task = scrubbed(row.task_name or "no task")
    return printable(
        f"{row.acted_at.isoformat(sep=' ', timespec='seconds')} {row.action} by {row.actor}:"
        f" {row.message_key[:SHOWN_KEY]} (task {row.task_id or '-'}, {task}{lab}),"
        f" dead_letter_actions.id {row.id}"
    )


def _progress(text: str) -> None:
    print(f"... {text}", file=sys.stderr)


def _complain(text: str) -> None:
    print(f"autolabs: {text}", file=sys.stderr)
