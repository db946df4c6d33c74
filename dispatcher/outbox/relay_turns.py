"""Relay for a backend's own threads, each after its commit: one at a time per engine.

A relay holds a connection of the backend's pool for as long as the broker takes to answer, and publishes
everybody's rows. So a call that finds one under way leaves its task to it, or takes its place after the
batch. A task that was committed before its call is looked for after that call began, whoever does it.
"""

from __future__ import annotations

import logging
import threading
import time
from weakref import WeakKeyDictionary

from sqlalchemy import Engine

from dispatcher.errors import DispatcherError
from dispatcher.forks import call_in_forked_children
from dispatcher.message.request import TaskPublisher
from dispatcher.outbox.relay import BATCH, PUBLISH_TIMEOUT_S, BatchReport, RelayReport, Tally, relay_batch

logger = logging.getLogger(__name__)

#: Seconds without a try after the broker confirmed nothing, so that not every request waits for it.
PAUSE_S = 5.0
#: Seconds that the next in line waits for the end of a batch. A healthy broker needs a few hundredths.
PATIENCE_S = 0.25
#: Seconds that a last look may take when others left their tasks to a call whose own time is over.
LAST_LOOK_S = 1.0


def relay_after_commit(
    engine: Engine,
    publisher: TaskPublisher,
    *,
    timeout_s: float,
    batch: int = BATCH,
    pause_s: float = PAUSE_S,
) -> RelayReport:
    """Publish what is due, or leave it to the call of another thread; `.elsewhere` tells which.

    Raises nothing of the broker or the database. For `pause_s` seconds after the broker was found away the
    calls with this publisher return at once, with `.broker_away`.
    """
    started = time.monotonic()
    turns = _turns_of(engine)
    if turns.is_away(publisher):
        return RelayReport(broker_away=True)
    me, tally = object(), Tally()
    try:
        if not turns.take(me, started + timeout_s, look_until=started + timeout_s - min(1.0, timeout_s / 2)):
            return RelayReport(elsewhere=True)
        if turns.is_away(publisher):  # the one before has just found out
            return RelayReport(broker_away=True)
        while True:
            left_s = max(started + timeout_s - time.monotonic(), min(LAST_LOOK_S, timeout_s))
            done = relay_batch(engine, publisher, batch=batch, timeout_s=min(left_s, PUBLISH_TIMEOUT_S))
            tally.add(done)
            if done.broker_away:
                turns.pause(publisher, pause_s)
            if not turns.keep(me, done):
                return tally.report(elsewhere=done.go_on and turns.is_taken())
    except DispatcherError as exc:
        return tally.report(exc)
    finally:
        turns.leave(me)  # also when a web server's time limit ends it


class _Turns:
    """The queue of those who relay with an engine: one holder, and at most one next in line."""

    # Condition has an RLock: a signal handler that relays meets the turn of its thread, not a deadlock.
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: object | None = None
        #: The holder's time.monotonic() after which it looks only for those who are promised it.
        self._look_until = 0.0
        self._next_waits = False
        #: Somebody went away trusting in one more look of the holder's.
        self._again = False
        self._away_until: WeakKeyDictionary[TaskPublisher, float] = WeakKeyDictionary()

    def is_away(self, publisher: TaskPublisher) -> bool:
        with self._changed:
            return time.monotonic() < self._away_until.get(publisher, 0.0)

    def pause(self, publisher: TaskPublisher, pause_s: float) -> None:
        with self._changed:
            self._away_until[publisher] = time.monotonic() + pause_s
        logger.warning(
            "outbox: the broker confirmed nothing; the next try is in %g s at the earliest",
            pause_s,
            extra={"action": "outbox_pause"},
        )

    def is_taken(self) -> bool:
        with self._changed:
            return self._holder is not None or self._next_waits

    def take(self, me: object, deadline: float, *, look_until: float) -> bool:
        """Become the holder; False: another will look for what is committed by now."""
        with self._changed:
            if self._holder is not None and (self._next_waits or not self._wait(deadline)):
                return False
            self._holder, self._look_until, self._again = me, look_until, False
            return True

    def keep(self, me: object, done: BatchReport) -> bool:
        """Tell the holder whether to look again; if not, it has left."""
        with self._changed:
            in_time = time.monotonic() < self._look_until
            again, self._again = self._again, False
            if not done.broker_away and not self._next_waits and (again or (done.go_on and in_time)):
                return True
            self.leave(me)
            return False

    def leave(self, me: object) -> None:
        """Make room for the next, unless that has happened."""
        with self._changed:
            if self._holder is me:
                self._holder = None
                self._changed.notify_all()

    def _wait(self, deadline: float) -> bool:
        """Wait in line; False: the holder was asked for one more look instead."""
        self._next_waits = True
        try:
            self._changed.wait_for(self._is_free, min(PATIENCE_S, deadline - time.monotonic()))
            if not self._is_free() and time.monotonic() >= self._look_until:
                self._changed.wait_for(self._is_free, deadline - time.monotonic())
            return self._is_free()
        finally:
            self._next_waits = False
            self._again = True

    def _is_free(self) -> bool:
        return self._holder is None


_registry: WeakKeyDictionary[Engine, _Turns] = WeakKeyDictionary()
_registry_lock = threading.Lock()


def _turns_of(engine: Engine) -> _Turns:
    with _registry_lock:
        return _registry.setdefault(engine, _Turns())


def _forget_after_fork() -> None:
    # Threads of the parent that hold a turn or a lock are not there to give it back.
    global _registry, _registry_lock
    _registry, _registry_lock = WeakKeyDictionary(), threading.Lock()


call_in_forked_children(_forget_after_fork)
