"""`python -m jobs` in this process: the same main, and at its end what the end of a process does.

It has no patience with servers that are away, whose seconds tests/unit/jobs/test_patience.py keeps.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pika import BlockingConnection

import jobs.__main__
import jobs.cluster.client
import jobs.database.connection
import jobs.handlers.context
from dispatcher.broker import connection
from jobs import logs
from jobs.handlers.context import Connections
from jobs.notify.redis_results import ResultWriter
from tests.support.containers.in_process import alone
from tests.support.waiting import HANG_S

#: Seconds of patience with a server that is away.
SHORT_S = 0.2


def serve(environ: Mapping[str, str], log: Path, *, put_aside: int) -> int:
    """Serve one task, its log going to a file; return the exit code.

    After `put_aside` messages that are no tasks nothing else is waited for.
    """
    with (
        log.open("w", encoding="utf-8") as out,
        alone(environ, stdin=io.StringIO(), out=out, err=out),
        pytest.MonkeyPatch.context() as patch,
        _ended(patch),
    ):
        for module, name in (
            (jobs.__main__, "BROKER_BLIP_S"),
            (jobs.cluster.client, "BLIP_S"),
            (jobs.database.connection, "BLIP_S"),
        ):
            patch.setattr(module, name, SHORT_S)
        patch.setattr(jobs.__main__, "MAX_PUT_ASIDE", put_aside)
        logs.set_task(task_id=None)
        return jobs.__main__.main()


@contextmanager
def _ended(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """End the threads and close the connections that a container leaves to the end of its process."""
    before = {*threading.enumerate()}
    brokers: list[BlockingConnection] = []
    opened: list[Connections] = []

    def connect(*arguments: Any, **options: Any) -> BlockingConnection:
        brokers.append(connection.connect(*arguments, **options))
        return brokers[-1]

    class Recorded(Connections):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            opened.append(self)

    patch.setattr(jobs.__main__, "connect", connect)
    patch.setattr(jobs.handlers.context, "Connections", Recorded)
    try:
        yield
    finally:
        with ExitStack() as stack:
            for broker in brokers:
                stack.callback(_close_broker, broker)
            for each in opened:
                stack.callback(_close, each)
            # Before anything is closed: a thread may still open what would be nobody's then.
            stack.callback(_join, {*threading.enumerate()} - before)


def _join(threads: set[threading.Thread]) -> None:
    for thread in threads:
        if thread.name in ("warm-up", "task"):
            thread.join(HANG_S)
            if thread.is_alive():
                raise AssertionError(f"the thread {thread.name} of a container does not end")


def _close_broker(broker: BlockingConnection) -> None:
    if broker.is_open:
        broker.close()


def _close(connections: Connections) -> None:
    # Those that were never asked for are not there.
    found = vars(connections)
    for name in ("publisher", "labs"):
        if name in found:
            found[name].close()
    if isinstance(found.get("results"), ResultWriter):
        close_writer(found["results"])


def close_writer(results: ResultWriter) -> None:
    """Close a writer's connection, behind all that it was given; its thread waits for more until the end."""
    closed = threading.Event()

    def close() -> None:
        try:
            if results._client is not None:
                results._client.close()
        finally:
            closed.set()

    results._order(close)
    if not closed.wait(HANG_S):
        raise AssertionError("a result is still being stored")
