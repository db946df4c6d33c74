"""Serve one task and exit: `python -m jobs`.

A message that is no task is put aside, in the dead-letter queue, and the next one taken: a container
for each would keep the tasks behind a pile of them waiting for minutes.

Exit codes: 0 the message is settled, or there was none; 69 the broker is not reachable; 75 the message
was given back; 78 the settings are wrong; 143 stopped by SIGTERM, the message was given back. The
broker alone decides about another delivery, never the exit code.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from pika.exceptions import AMQPError

from dispatcher.connection import connect
from dispatcher.errors import InvalidSettings
from dispatcher.pika_tables import tolerant_tables
from dispatcher.settings import read_settings
from jobs import logs
from jobs.consumer import ChannelLost, Consumer, Delivery, Settlement
from jobs.readiness import announce_claim
from jobs.retry import through_blips
from jobs.settings import JobSettings
from jobs.steps import reached

EXIT_OK = 0
EXIT_UNAVAILABLE = 69
EXIT_GIVEN_BACK = 75
EXIT_CONFIG = 78
EXIT_SIGTERM = 143

#: Messages that one container puts aside, and seconds for them, before another is to go on: its deadline
#: is for one task.
MAX_PUT_ASIDE, PUT_ASIDE_S = 500, 30.0
#: Seconds after the acknowledgement to tell people; what is left then the sweep of the outbox does.
NOTIFY_S = 8.0
#: Seconds of patience with a broker that restarts; the queue's messages bring new containers anyway.
BROKER_BLIP_S = 15.0

logger = logging.getLogger("jobs")


def process_started_at() -> datetime:
    """Return when this process began, from the kernel, to 10 ms."""
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    # Field 22, counted after the command's closing parenthesis (proc_pid_stat(5)).
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age_s = uptime_s - ticks / os.sysconf("SC_CLK_TCK")
    return datetime.now(timezone.utc) - timedelta(seconds=age_s)


class WarmUp:
    """Imports and connections made ahead, in a thread, while a spare waits."""

    def __init__(self, settings: JobSettings) -> None:
        self._settings = settings
        self._thread: threading.Thread | None = None
        self._connections: Any = None

    def start(self) -> None:
        """Begin, when no message was there at once; a second call changes nothing."""
        if self._thread is not None or self._connections is not None:
            return
        self._thread = threading.Thread(target=self._warm, name="warm-up", daemon=True)
        self._thread.start()

    def connections(self) -> Any:
        """Return the connections, warm if there was time for it."""
        from jobs.context import Connections

        if self._thread is not None:
            self._thread.join()
        self._connections = self._connections or Connections(self._settings)
        return self._connections

    def _warm(self) -> None:
        import jobs.worker  # noqa: F401  # the import is the point
        from jobs.context import Connections

        self._connections = Connections(self._settings)
        try:
            self._connections.warm()
        except Exception as exc:  # the task will meet the same trouble, and reports it
            logger.warning("not warm: %r", exc, extra={"action": "not_warm"})


def serve(settings: JobSettings, started_at: datetime) -> int:
    """Claim one task, run it, settle it; return the exit code."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    name = f"autolabs-job {settings.pod_name or ''}".strip()
    try:
        connection = through_blips(
            lambda: connect(settings.broker, name=name),
            on=(AMQPError, OSError),
            within_s=BROKER_BLIP_S,
            what="connection to the broker",
        )
        consumer = Consumer(connection, settings.queue)
    except (AMQPError, OSError) as exc:
        return _unavailable(exc)
    warm_up = WarmUp(settings)
    waiting_since = time.monotonic()
    put_aside, first_put_aside = 0, 0.0
    pile: deque[Delivery] = deque()
    while put_aside < MAX_PUT_ASIDE and (not put_aside or time.monotonic() < first_put_aside + PUT_ASIDE_S):
        left_s = waiting_since + settings.claim_wait_s - time.monotonic()
        try:
            # Behind one message that is no task there are often more.
            if put_aside and not pile:
                pile = consumer.claim_pile(_is_task)
            delivery = (pile and pile.popleft()) or consumer.claim(
                wait_s=left_s, stop=stop, on_waiting=warm_up.start, spares=settings.spares
            )
        except (AMQPError, OSError) as exc:
            return _unavailable(exc)
        waited_s = round(time.monotonic() - waiting_since, 3)
        if delivery is None:
            logs.set_task(task_id=None)
            extra = {"action": "idle", "waited_s": waited_s, "put_aside": put_aside}
            logger.info("no message", extra=extra)
            break
        code = _serve_one(consumer, delivery, warm_up, settings, stop, started_at, waited_s)
        if code is not None:
            return code
        put_aside, first_put_aside = put_aside + 1, first_put_aside or time.monotonic()
    if pile:
        _leave(consumer, len(pile))
    if put_aside:
        _notify(warm_up.connections(), stop)
    return EXIT_OK


def _is_task(delivery: Delivery) -> bool:
    from jobs.worker import is_task

    return is_task(delivery)


def _leave(consumer: Consumer, count: int) -> None:
    """Give the rest of a pile back: it is another container's turn."""
    logger.warning("%d messages of a pile are given back", count, extra={"action": "pile_given_back"})
    try:
        consumer.give_back_all()
    except ChannelLost as exc:
        logger.warning("broker gives them back itself: %s", exc, extra={"action": "channel_lost"})


def _unavailable(exc: Exception) -> int:
    logger.error("broker is not usable: %r", exc, extra={"action": "broker_unavailable"})
    return EXIT_UNAVAILABLE


def _serve_one(
    consumer: Consumer,
    delivery: Delivery,
    warm_up: WarmUp,
    settings: JobSettings,
    stop: threading.Event,
    started_at: datetime,
    waited_s: float,
) -> int | None:
    """Serve one message and return the exit code, or None when it was no task."""
    details = {
        "container_started_at": started_at.isoformat(timespec="milliseconds"),
        "claimed_at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "waited_s": waited_s,
    }
    try:
        listener = announce_claim(settings.ready_port)
    except OSError as exc:
        logger.error("readiness port is not free: %s", exc, extra={"action": "port_taken"})
        consumer.give_back(delivery, failed=not stop.is_set())
        return EXIT_GIVEN_BACK
    with listener:
        return _work(consumer, delivery, warm_up, details, stop)


def _work(
    consumer: Consumer,
    delivery: Delivery,
    warm_up: WarmUp,
    details: dict[str, Any],
    stop: threading.Event,
) -> int | None:
    settlements: list[Settlement] = []
    done = threading.Event()

    def work() -> None:
        try:
            from jobs.worker import run_task

            settlements.append(run_task(warm_up.connections(), delivery, details))
        except Exception:
            logger.exception("message is given back", extra={"action": "bug"})
        finally:
            done.set()
            consumer.wake()

    worker = threading.Thread(target=work, name="task", daemon=True)
    worker.start()
    consumer.serve_until(done, stop)
    settlement = settlements[0] if settlements else Settlement.NACK
    try:
        performed = settlement in (Settlement.ACK, Settlement.NACK) or stop.is_set() or _is_task(delivery)
        if not performed:
            consumer.put_aside(delivery)
            return None
        if settlement is not Settlement.NACK:
            reached("settling")
            consumer.acknowledge(delivery)
            reached("acknowledged")
            _notify(warm_up.connections(), stop)
            return EXIT_OK
        consumer.give_back(delivery, failed=done.is_set())
    except ChannelLost as exc:
        # What is committed stays: the next delivery finds it done.
        logger.warning("broker delivers the message again: %s", exc, extra={"action": "channel_lost"})
        return EXIT_GIVEN_BACK if settlement is Settlement.NACK else EXIT_OK
    if stop.is_set():
        logger.warning("stopped, message given back", extra={"action": "stopped"})
        return EXIT_SIGTERM
    return EXIT_GIVEN_BACK


def _notify(connections: Any, stop: threading.Event) -> None:
    """Tell whom the task has to tell of; what fails is left to the sweep of the outbox."""
    if not connections.notifications:
        return
    try:
        from jobs.courier import Courier
        from jobs.notifications import deliver_one

        courier = Courier(connections.publisher, connections.settings.webhook)
        deadline = time.monotonic() + NOTIFY_S
        for notification_id in connections.notifications:
            if stop.is_set() or time.monotonic() > deadline:
                break
            deliver_one(connections.labs, courier, notification_id)
    except Exception:
        logger.exception("notification is left to the sweep", extra={"action": "notification_left"})


def main() -> int:
    """Read settings, serve one message, return the exit code."""
    started_at = process_started_at()
    try:
        settings = read_settings(os.environ, JobSettings.from_environment)
    except InvalidSettings as exc:
        logs.configure("INFO")
        logger.error("%s", exc, extra={"action": "settings"})
        return EXIT_CONFIG
    logs.configure(settings.log_level)
    try:
        # pika gives its connection up over a header that it cannot read, and so would each container.
        with tolerant_tables():
            return serve(settings, started_at)
    except InvalidSettings as exc:  # what only pika finds in the URL of the broker
        logger.error("%s", exc, extra={"action": "settings"})
        return EXIT_CONFIG


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    # Without tearing the interpreter down: a worker thread may still be inside a call, and 30 ms of
    # clean-up are 30 ms in which the node's CPU is not free for the next lab.
    os._exit(code)
