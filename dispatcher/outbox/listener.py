"""Relay for as long as the process lives: woken by commits, by backoffs that end, and now and then."""

from __future__ import annotations

import logging
import random
import select
import threading
import time
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from dispatcher.broker.publisher import Publisher
from dispatcher.engine import make_engine, reason
from dispatcher.errors import DispatcherError
from dispatcher.outbox.relay import BATCH, PUBLISH_TIMEOUT_S, next_due_s, relay_batch

logger = logging.getLogger(__name__)

#: Notified by the table's trigger, once per transaction that added something.
CHANNEL = "autolabs_outbox"
#: Seconds between looks that nothing asked for: a notification is lost behind a transaction pooler.
POLL_S = 15.0
#: Seconds within which a wait notices that it should stop.
STOP_CHECK_S = 0.25
#: Seconds to wait when rows are due and none could be published: another relay holds them, or the broker
#: is away.
PAUSE_S = 1.0
#: Seconds before the database is tried again: doubled from the first to the last.
FIRST_RECONNECT_S, MAX_RECONNECT_S = 0.5, 10.0


class Wakeups:
    """LISTEN on a connection of its own, as long as the context lasts.

    A commit between two waits is not missed: its notification waits in the connection.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> Wakeups:
        try:
            pooled = self._engine.raw_connection()
            driver: Any = pooled.driver_connection  # psycopg2's, see dispatcher.engine
            pooled.detach()  # it listens, so nobody else may get it from the pool
            driver.autocommit = True
            driver.cursor().execute(f"LISTEN {CHANNEL}")
            self._driver = driver
        except (SQLAlchemyError, self._driver_error) as exc:
            raise DispatcherError(f"the database does not report commits: {reason(exc)}") from exc
        return self

    def __exit__(self, *_exc: object) -> None:
        self._driver.close()

    def wait(self, timeout_s: float, stop: threading.Event) -> None:
        """Return once something was committed, `timeout_s` seconds are over, or `stop` is set.

        Raises DispatcherError when the connection is lost.
        """
        deadline = time.monotonic() + timeout_s
        while not stop.is_set() and (left_s := deadline - time.monotonic()) > 0:
            if select.select([self._driver], [], [], min(left_s, STOP_CHECK_S))[0] and self._notified():
                return

    def _notified(self) -> bool:
        try:
            self._driver.poll()
        except self._driver_error as exc:
            raise DispatcherError(f"the connection to the database was lost: {reason(exc)}") from exc
        told = bool(self._driver.notifies)
        self._driver.notifies.clear()
        return told

    @property
    def _driver_error(self) -> type[Exception]:
        return self._engine.dialect.loaded_dbapi.Error


def relay_forever(
    database_url: str,
    publisher: Publisher,
    stop: threading.Event,
    *,
    batch: int = BATCH,
    publish_timeout_s: float = PUBLISH_TIMEOUT_S,
    poll_s: float = POLL_S,
) -> None:
    """Relay until `stop` is set; then the batch under way is finished, and the call returns.

    A database or a broker that is away is waited for, and the publisher is left open. Several may run at
    once. A stop may take `publish_timeout_s` seconds, as one transaction may. `poll_s` is the time between
    looks that no notification asked for.
    """
    engine = make_engine(database_url, application_name="autolabs-outbox")
    delay_s = FIRST_RECONNECT_S
    try:
        while not stop.is_set():
            try:
                with Wakeups(engine) as wakeups:
                    logger.info("outbox: listening", extra={"action": "outbox_listening"})
                    while not stop.is_set():
                        done = relay_batch(engine, publisher, batch=batch, timeout_s=publish_timeout_s)
                        delay_s = FIRST_RECONNECT_S
                        if not done.go_on:
                            wakeups.wait(max(PAUSE_S, next_due_s(engine, limit_s=poll_s)), stop)
            except DispatcherError as exc:
                engine.dispose()
                logger.warning("outbox: %s; trying again", exc, extra={"action": "outbox_database"})
                stop.wait(delay_s * random.uniform(0.5, 1.0))
                delay_s = min(2 * delay_s, MAX_RECONNECT_S)
    finally:
        engine.dispose()
