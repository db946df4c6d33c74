"""Print how fast tasks are published, confirmed, beside Celery: `python -m tests.bench.publishing`.

One process publishes the same task to the same queue of one broker, in turns, so that a busy machine
is busy for all of them. Figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pika
from celery import Celery

from dispatcher import CREATE_LAB_POD, CreateLabPod, Dispatcher, celery_config
from dispatcher.broker import topology
from dispatcher.message.envelope import encode
from tests.support.broker.rabbitmq import Broker
from tests.support.factories import create_kwargs, make_task

#: What `import dispatcher` costs a backend: milliseconds and the peak of memory, in MiB.
_IMPORT = """
import time
def peak():
    # Not ru_maxrss, which a child inherits from who started it.
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
bare, started = peak(), time.perf_counter()
import {module}
print(1000 * (time.perf_counter() - started), peak(), bare)
"""


@dataclass(slots=True)
class Row:
    """One way to publish: tasks a second, and microseconds of this process's CPU for one, per round."""

    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    def measure(self, publish: Callable[[], object], count: int) -> None:
        """Add a round of `count` tasks."""
        cpu, started = time.process_time(), time.perf_counter()
        publish()
        self.rates.append(count / (time.perf_counter() - started))
        self.cpu_us.append(1e6 * (time.process_time() - cpu) / count)

    @property
    def rate(self) -> float:
        """Tasks a second."""
        return statistics.median(self.rates)


def measure(broker: Broker, *, rounds: int, singles: int, many: int) -> dict[str, Row]:
    """Return the rows by name."""
    kwargs = create_kwargs()
    app = Celery("bench", broker=broker.url, set_as_current=False)
    app.conf.update(celery_config())
    dispatcher = Dispatcher(broker.url)
    channel = broker.channel()
    channel.confirm_delivery()
    payloads = [CreateLabPod(**kwargs)] * many

    def repeat(send: Callable[[], object], count: int) -> None:
        for _ in range(count):
            send()

    def celery() -> None:
        app.send_task(CREATE_LAB_POD, kwargs=kwargs)

    def pika_alone() -> None:
        body, sent = encode(make_task())
        channel.basic_publish(
            topology.TASKS_EXCHANGE, "lab.create", body, pika.BasicProperties(**sent), mandatory=True
        )

    def send_task() -> None:
        dispatcher.send_task(CREATE_LAB_POD, kwargs=kwargs)

    def send_many() -> None:
        failed = [result.error for result in dispatcher.send_many(payloads, timeout=120) if not result.ok]
        if failed:
            raise RuntimeError(f"{len(failed)} of {many} not confirmed: {failed[0]}")

    ways = {
        "Celery send_task, confirm_publish": celery,
        "pika BlockingChannel, confirmed": pika_alone,
        "dispatcher.send_task": send_task,
    }
    rows = {name: Row() for name in [*ways, "dispatcher.send_many"]}
    for way in ways.values():
        way()  # connect, import, warm up
    for _ in range(rounds):
        for name, way in ways.items():
            rows[name].measure(lambda way=way: repeat(way, singles), singles)  # type: ignore[misc]
        rows["dispatcher.send_many"].measure(send_many, many)
        broker.channel().queue_purge(topology.QUEUE_NORMAL)
    dispatcher.close()
    app.close()
    return rows


def import_cost(module: str) -> str:
    """Return what importing a module costs a fresh process; the best of five."""
    runs = []
    for _ in range(5):
        command = [sys.executable, "-c", _IMPORT.format(module=module)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        runs.append([float(value) for value in out.split()])
    wall_ms, peak_mib, bare_mib = min(runs)
    return f"import {module}: {wall_ms:.0f} ms, {peak_mib:.0f} MiB (Python alone {bare_mib:.0f})"


def lines(rows: dict[str, Row]) -> list[str]:
    """Return the table."""
    peer = next(iter(rows.values())).rate
    found = [f"{'Confirmed publishes, one process':34}{'a second':>10}{'x Celery':>10}{'CPU us':>8}"]
    for name, row in rows.items():
        cpu = statistics.median(row.cpu_us)
        found.append(f"{name:34}{row.rate:>10,.0f}{row.rate / peer:>10.2f}{cpu:>8.0f}")
    return found


def run(*, rounds: int = 7, singles: int = 1000, many: int = 20_000) -> list[str]:
    """Measure on the broker of the environment, in a vhost of its own, and return what to print."""
    broker = Broker.create(os.environ["AMQP_URL"], os.environ["RABBITMQ_API_URL"])
    try:
        broker.declare()
        rows = measure(broker, rounds=rounds, singles=singles, many=many)
    finally:
        broker.remove()
    return [*lines(rows), *map(import_cost, ("dispatcher", "dispatcher.broker.publisher", "celery.app.base"))]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.publishing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of all ways in turn (default 7)")
    parser.add_argument(
        "--singles", type=int, default=1000, help="tasks per round, one by one (default 1000)"
    )
    parser.add_argument("--many", type=int, default=20_000, help="tasks per send_many (default 20000)")
    arguments = parser.parse_args()
    print("\n".join(run(**vars(arguments))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
