"""Count what waits on the broker and what consumers hold: nothing is taken, moved or made older.

That is what a periodic task may do. A count says less than a walk (jobs.verify.queue_walk): of a message that
waits nobody knows whose it is, so that a request is proven lost only where none waits.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection
from http.client import HTTPException
from time import monotonic
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, urlopen

from pika.exceptions import AMQPError

from dispatcher.broker import delay_ladder, topology
from dispatcher.broker.connection import answers_within, connect, url_parameters
from dispatcher.broker.publisher import Publisher
from dispatcher.interrupts import Stop
from dispatcher.settings import BrokerSettings
from dispatcher.trust import make_context, why_untrusted
from jobs.database.lab_store import LabStore
from jobs.database.snapshot_rows import known_delays

#: From the highest level down, as messages go: one that moves on meanwhile is counted later.
_LADDER = [delay_ladder.level_name(level) for level in reversed(range(delay_ladder.LEVELS))]
#: Seconds for which a queue is looked at until nothing waits in it: containers take what comes at once.
LOOK_S = 2.0
_POLL_S = 0.2
#: Seconds until the management API has to answer.
TIMEOUT_S = 10
#: Seconds for a polite goodbye.
CLOSE_TIMEOUT_S = 2.0


class BrokerAway(Exception):
    """Raised when the broker does not answer, or takes no messages."""


class ManagementAway(Exception):
    """Raised when the management API does not answer, or not with what is asked for."""


class Queues:
    """Two connections to the broker: one counts, takes and acknowledges, the other publishes."""

    def __init__(self, settings: BrokerSettings, *, stop: Stop | None = None) -> None:
        """Connect. Raises BrokerAway."""
        self.publisher = Publisher(settings, name="autolabs-verify-publish")
        self.stop = stop or Stop()
        try:
            self._connection = connect(settings, name="autolabs-verify")
            self.channel = self._connection.channel()
        except AMQPError as exc:
            raise BrokerAway(repr(exc)) from exc

    def close(self) -> None:
        """Leave the broker; a message in our hands goes back to its queue."""
        self.publisher.close()
        try:
            with answers_within(self._connection, CLOSE_TIMEOUT_S):
                if self._connection.is_open:
                    self._connection.close()
        except AMQPError:
            return  # it is closed, that is what counts

    def count(self, queues: Collection[str]) -> int:
        """Return how many messages wait in these queues. Raises BrokerAway, also for one that is missing."""
        try:
            return sum(
                int(self.channel.queue_declare(queue, passive=True).method.message_count) for queue in queues
            )
        except AMQPError as exc:
            raise BrokerAway(repr(exc)) from exc

    def count_delayed(self, labs: LabStore) -> tuple[int, int]:
        """Return how many messages wait on the delay ladder, and of how many of them the ledger knows.

        Raises BrokerAway, JobError.
        """
        if not self.count(_LADDER):
            return 0, 0
        # Before the count, because what the ledger knows is still there a moment later.
        known = known_delays(labs)
        return self.count(_LADDER), known

    def least_waiting(self) -> dict[str, int]:
        """Return queue -> the fewest messages that waited there within a moment. Raises BrokerAway.

        The fewest will do: what was in none of the queues at its moment was not there before, since a message
        goes on and comes back only to the queue from which a container took it.
        """
        least: dict[str, int] = {}
        deadline = monotonic() + LOOK_S
        while True:
            for queue in topology.BINDINGS:
                if least.get(queue) != 0:
                    least[queue] = min(self.count([queue]), least.get(queue, 2**63))
            if not any(least.values()) or monotonic() >= deadline:
                return least
            self.stop.pause(_POLL_S)


def unacked(api_url: str, broker: BrokerSettings) -> dict[str, int]:
    """Return queue -> messages that are delivered and not settled, up to 10 s old. Raises ManagementAway.

    AMQP does not say it. `api_url` is that of the management API, with user and password.
    """
    vhost = quote(url_parameters(broker).virtual_host, safe="")
    return {
        queue: _unacked(api_url, f"/api/queues/{vhost}/{quote(queue, safe='')}", broker.ca_file)
        for queue in topology.BINDINGS
    }


def _unacked(api_url: str, path: str, ca_file: str) -> int:
    parts = urlsplit(api_url)
    credentials = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    headers = {"authorization": "Basic " + base64.b64encode(credentials.encode()).decode()}
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    request = Request(address + path + "?columns=messages_unacknowledged", headers=headers)  # noqa: S310  # scheme is checked
    try:
        context = make_context(ca_file) if parts.scheme == "https" else None
        with urlopen(request, timeout=TIMEOUT_S, context=context) as answer:  # noqa: S310
            found = json.load(answer)
    except (OSError, HTTPException, ValueError) as exc:
        raise ManagementAway(f"{parts.hostname}:{parts.port} {path}: {why_untrusted(exc) or exc}") from exc
    # A queue that is new has no figures yet, and an empty object comes as an empty list.
    return int(found["messages_unacknowledged"]) if found else 0
