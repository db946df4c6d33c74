"""Serve one task and exit: `python -m jobs`.

A message that is no task is put aside, in the dead-letter queue, and the next one taken: a container
for each would keep the tasks behind a pile of them waiting for minutes.

Exit codes: 0 the message is settled, or there was none; 69 the broker is not reachable; 75 the message
was given back; 78 the settings are wrong; 143 stopped by SIGTERM, the message was given back. The
broker alone decides about another delivery, never the exit code. Before 69 and 78 the container waits, a
minute or more, for what is wrong to be mended, so that its replacements are few (jobs.container.hold).
"""

from __future__ import annotations

import logging
import math
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

from dispatcher.broker.connection import connect, tolerant_tables
from dispatcher.errors import InvalidSettings
from dispatcher.settings import Environment, read_settings
from jobs import logs
from jobs.config.environment import JobSettings
from jobs.container.consumer import (
    ChannelLost,
    Consumer,
    ConsumerCancelled,
    Delivery,
    Settlement,
    announce_claim,
)
from jobs.steps import reached
from jobs.waiting import through_blips

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
    """Make imports and connections ahead, in a thread, while a spare waits."""

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
        from jobs.handlers.context import Connections

        if self._thread is not None:
            self._thread.join()
        self._connections = self._connections or Connections(self._settings)
        return self._connections

    def _warm(self) -> None:
        import jobs.container.run_task  # noqa: F401  # the import is the point
        from jobs.handlers.context import Connections

        self._connections = Connections(self._settings)
        try:
            self._connections.warm()
        except Exception as exc:  # the task will meet the same trouble, and reports it
            logger.warning("not warm: %r", exc, extra={"action": "not_warm"})


def serve(settings: JobSettings, started_at: datetime, stop: threading.Event) -> int:
    """Claim one task, run it, settle it; return the exit code."""
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
    return Container(consumer, settings, stop, started_at).serve()


def _unavailable(exc: Exception) -> int:
    logger.error("broker is not usable: %r", exc, extra={"action": "broker_unavailable"})
    return EXIT_UNAVAILABLE


class Container:
    """Claim messages up to the first that is a task, and settle them."""

    def __init__(
        self, consumer: Consumer, settings: JobSettings, stop: threading.Event, started_at: datetime
    ) -> None:
        self._consumer = consumer
        self._settings = settings
        self._stop = stop
        self._started_at = started_at
        self._warm_up = WarmUp(settings)
        self._waiting_since = time.monotonic()
        #: Count of messages that were no tasks, and the moment from which another container is to go on.
        self._put_aside, self._until = 0, math.inf
        #: Messages that were taken at once, behind one that was no task.
        self._pile: deque[Delivery] = deque()

    def serve(self) -> int:
        while self._put_aside < MAX_PUT_ASIDE and time.monotonic() < self._until:
            try:
                delivery = self._claim()
            except ConsumerCancelled as exc:
                # Another container consumes anew, or finds what is missing.
                logger.warning("%s", exc, extra={"action": "consumer_cancelled"})
                break
            except (AMQPError, OSError) as exc:
                return _unavailable(exc)
            waited_s = round(time.monotonic() - self._waiting_since, 3)
            if delivery is None:
                logs.set_task(task_id=None)
                extra = {"action": "idle", "waited_s": waited_s, "put_aside": self._put_aside}
                logger.info("no message", extra=extra)
                break
            code = self._serve_one(delivery, waited_s)
            if code is not None:
                return code
            self._put_aside += 1
            self._until = min(self._until, time.monotonic() + PUT_ASIDE_S)
        if self._pile:
            self._give_pile_back()
        if self._put_aside:
            self._notify()
        return EXIT_OK

    def _claim(self) -> Delivery | None:
        # Behind one message that is no task there are often more.
        if self._put_aside and not self._pile:
            self._pile = self._consumer.claim_pile(_is_task)
        if self._pile:
            return self._pile.popleft()
        return self._consumer.claim(
            wait_s=self._waiting_since + self._settings.claim_wait_s - time.monotonic(),
            stop=self._stop,
            on_waiting=self._warm_up.start,
            spares=self._settings.spares,
        )

    def _give_pile_back(self) -> None:
        count = len(self._pile)
        logger.warning("%d messages of a pile are given back", count, extra={"action": "pile_given_back"})
        try:
            self._consumer.give_back_all()
        except ChannelLost as exc:
            logger.warning("broker gives them back itself: %s", exc, extra={"action": "channel_lost"})

    def _serve_one(self, delivery: Delivery, waited_s: float) -> int | None:
        """Serve one message and return the exit code, or None when it was no task."""
        details = {
            "container_started_at": self._started_at.isoformat(timespec="milliseconds"),
            "claimed_at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "waited_s": waited_s,
        }
        try:
            listener = announce_claim(self._settings.ready_port)
        except OSError as exc:
            logger.error("readiness port is not free: %s", exc, extra={"action": "port_taken"})
            self._consumer.give_back(delivery, failed=not self._stop.is_set())
            return EXIT_GIVEN_BACK
        with listener:
            settlement = self._run(delivery, details)
            return self._settle(delivery, settlement)

    def _run(self, delivery: Delivery, details: dict[str, Any]) -> Settlement | None:
        """Run the task in a thread; None when a stop came first."""
        settlements: list[Settlement] = []
        done = threading.Event()

        def work() -> None:
            try:
                from jobs.container.run_task import run_task

                settlements.append(run_task(self._warm_up.connections(), delivery, details))
            except Exception:
                logger.exception("message is given back", extra={"action": "bug"})
            finally:
                done.set()
                self._consumer.wake()

        threading.Thread(target=work, name="task", daemon=True).start()
        self._consumer.serve_until(done, self._stop)
        if settlements:
            return settlements[0]
        return Settlement.NACK if done.is_set() else None

    def _settle(self, delivery: Delivery, settlement: Settlement | None) -> int | None:
        """Acknowledge a message or give it back; return the exit code, or None when it was no task."""
        given_back = settlement in (None, Settlement.NACK)
        try:
            if given_back:
                self._consumer.give_back(delivery, failed=settlement is Settlement.NACK)
            elif settlement is not Settlement.ACK and not self._stop.is_set() and not _is_task(delivery):
                self._consumer.put_aside(delivery)
                return None
            else:
                reached("settling")
                self._consumer.acknowledge(delivery)
                reached("acknowledged")
                self._notify()
                return EXIT_OK
        except ChannelLost as exc:
            # What is committed stays: the next delivery finds it done.
            logger.warning("broker delivers the message again: %s", exc, extra={"action": "channel_lost"})
            return EXIT_GIVEN_BACK if given_back else EXIT_OK
        if self._stop.is_set():
            logger.warning("stopped, message given back", extra={"action": "stopped"})
            return EXIT_SIGTERM
        return EXIT_GIVEN_BACK

    def _notify(self) -> None:
        """Deliver what the tasks have to tell; what fails is left to the sweep of the outbox."""
        connections = self._warm_up.connections()
        if not connections.notifications:
            return
        try:
            from jobs.notify.notifications import Notifier, deliver_one

            notifier = Notifier(connections.publisher, connections.settings.webhook)
            deadline = time.monotonic() + NOTIFY_S
            for notification_id in connections.notifications:
                if self._stop.is_set() or time.monotonic() > deadline:
                    break
                deliver_one(connections.labs, notifier, notification_id)
        except Exception:
            logger.exception("notification is left to the sweep", extra={"action": "notification_left"})


def _is_task(delivery: Delivery) -> bool:
    from jobs.container.run_task import is_task

    return is_task(delivery)


def main() -> int:
    started_at = process_started_at()
    logs.configure("INFO")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    settings: JobSettings | None = None
    try:
        settings = read_settings(os.environ, JobSettings.from_environment)
        logs.configure(settings.log_level)
        # pika gives its connection up over a header that it cannot read, and so would each container.
        with tolerant_tables():
            code = serve(settings, started_at, stop)
    except InvalidSettings as exc:  # pika finds some in the URL of the broker as well
        logger.error("%s", exc, extra={"action": "settings"})
        code = EXIT_CONFIG
    if code in (EXIT_CONFIG, EXIT_UNAVAILABLE):
        _hold(settings if code == EXIT_UNAVAILABLE else None, stop)
    return code


def _hold(settings: JobSettings | None, stop: threading.Event) -> None:
    """Wait for what is wrong to be mended: the Secret, or the broker of these settings."""
    from jobs.container.hold import hold, hold_s

    wait_s = hold_s(Environment(os.environ))
    if not wait_s:
        return
    extra = {"action": "held", "wait_s": wait_s}
    logger.warning("container cannot work; it waits %g s at most before it ends", wait_s, extra=extra)
    sys.stdout.flush()
    hold(stop, wait_s, None if settings is None else lambda: _takes_us(settings))


def _takes_us(settings: JobSettings) -> bool:
    """Tell whether a consumer of the queue could be opened by now."""
    try:
        connection = connect(settings.broker, name="autolabs-job held")
        # Passive: it fails without the queue, and without the right to read it.
        connection.channel().queue_declare(settings.queue, passive=True)
        connection.close()
    except (AMQPError, OSError):
        return False
    return True


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    # Without tearing the interpreter down: a worker thread may still be inside a call, and 30 ms of
    # clean-up are 30 ms in which the node's CPU is not free for the next lab.
    os._exit(code)
