"""Store what becomes of a task as Celery's Redis backend does, for the AsyncResult of a backend.

The ledger is the truth: what Redis cannot take costs a warning and at most PATIENCE_S seconds, never the
task. redis-py is imported and used in a thread of its own, beside the work.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from dispatcher.message.celery_results import key_of, make_failure, make_meta, make_revoked, make_started
from dispatcher.task_status import STATE_OF_OUTCOME, TaskState
from jobs.config.environment import ResultSettings
from jobs.database.ledger import Ending

logger = logging.getLogger(__name__)

#: Seconds that a task waits at its end for its result to be stored.
PATIENCE_S = 2.0
#: Seconds for a connection and for an answer; one repetition on a new connection has to fit as well.
_TIMEOUT_S = 0.9

#: Celery never overwrites a SUCCESS (celery/backends/base.py, _store_result). Here only a task that was
#: performed overwrites any other end, as in dispatcher.results: all else is a duplicate's, or late.
_STORE = """
local found = redis.call('GET', KEYS[1])
if found then
  local readable, meta = pcall(cjson.decode, found)
  local state = readable and type(meta) == 'table' and meta.status
  if state == 'SUCCESS' then return 0 end
  if ARGV[3] == '0' and (state == 'FAILURE' or state == 'REVOKED') then return 0 end
end
if tonumber(ARGV[2]) > 0 then
  redis.call('SETEX', KEYS[1], ARGV[2], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1])
end
redis.call('PUBLISH', KEYS[1], ARGV[1])
return 1
"""


class ResultWriter:
    """One thread with one connection; what it is given is stored in this order."""

    def __init__(self, settings: ResultSettings) -> None:
        self._settings = settings
        self._orders: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._client: Any = None

    def warm(self) -> None:
        """Import and connect in the background."""
        self._order(lambda: self._connected().ping())

    def started(self, task_id: str, *, parent_id: str | None = None, group_id: str | None = None) -> None:
        result = make_started(socket.gethostname(), os.getpid())
        meta = make_meta(task_id, TaskState.STARTED, result, parent_id=parent_id, group_id=group_id)
        self._store(task_id, meta, performed=False)

    def finished(
        self, task_id: str, ending: Ending, *, parent_id: str | None = None, group_id: str | None = None
    ) -> None:
        """Store how a run ended; returns when that is done or has failed, within PATIENCE_S seconds."""
        state = STATE_OF_OUTCOME[ending.outcome]
        meta = make_meta(task_id, state, _result(state, ending), parent_id=parent_id, group_id=group_id)
        performed = ending.outcome == "succeeded"
        if not self._store(task_id, meta, performed=performed).wait(PATIENCE_S):
            _warn(f"no answer for {PATIENCE_S:g} s")

    def _store(self, task_id: str, meta: str, *, performed: bool) -> threading.Event:
        done = threading.Event()

        def store() -> None:
            try:
                arguments = (meta, self._settings.expires_s, int(performed))
                self._connected().eval(_STORE, 1, key_of(task_id), *arguments)
            finally:
                done.set()

        self._order(store)
        return done

    def _order(self, order: Callable[[], object]) -> None:
        self._orders.put(order)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="results", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            order = self._orders.get()
            try:
                order()
            except Exception as exc:  # no trouble with results may become the task's
                _warn(f"{type(exc).__name__}: {exc}")

    def _connected(self) -> Any:
        if self._client is None:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            self._client = redis.Redis.from_url(
                redis_url(self._settings.url, self._settings.ca_file),
                socket_connect_timeout=_TIMEOUT_S,
                socket_timeout=_TIMEOUT_S,
                # Once more on a new connection: the old one may have died of idleness.
                retry=Retry(NoBackoff(), 1),
            )
        return self._client


def redis_url(url: str, ca_file: str = "") -> str:
    """Return the URL as redis-py has it: its names for ssl_cert_reqs, and the authorities of CA_FILE."""
    parts = urlsplit(url)
    query = [
        (name, value.removeprefix("CERT_").lower() if name == "ssl_cert_reqs" else value)
        for name, value in parse_qsl(parts.query)
    ]
    # redis-py reads it beside the system's own authorities.
    if ca_file and parts.scheme == "rediss" and "ssl_ca_certs" not in dict(query):
        query.append(("ssl_ca_certs", ca_file))
    return urlunsplit(parts._replace(query=urlencode(query)))


def _result(state: TaskState, ending: Ending) -> Any:
    if state is TaskState.SUCCESS:
        return ending.result
    message = ending.error_message or ""
    if state is TaskState.REVOKED:
        return make_revoked(message)
    return make_failure(ending.error_category or "", message)


def _warn(reason: str) -> None:
    extra = {"action": "result_missed"}
    logger.warning("result is not in Redis, only in the ledger: %s", reason, extra=extra)
