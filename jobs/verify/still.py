"""How many messages wait where, counted by the broker: nothing is taken, moved or made older.

That is what a periodic task may do. A count says less than a walk: of a message that waits nobody knows whose
it is, so that a request is proven lost only where none waits.
"""

from __future__ import annotations

from time import monotonic

from dispatcher import topology
from dispatcher.interrupts import Stop
from jobs.verify.queues import Queues

#: Seconds for which a queue is looked at until nothing waits in it: containers take what comes at once.
LOOK_S = 2.0
_POLL_S = 0.2


def least_waiting(queues: Queues, stop: Stop) -> dict[str, int]:
    """Return queue -> the fewest messages that waited there within a moment. Raises BrokerAway.

    The fewest will do: what was in none of the queues at its moment was not there before, since a message
    goes on and comes back only to the queue from which a container took it.
    """
    least: dict[str, int] = {}
    deadline = monotonic() + LOOK_S
    while True:
        for queue in topology.BINDINGS:
            if least.get(queue) != 0:
                least[queue] = min(queues.count([queue]), least.get(queue, 2**63))
        if not any(least.values()) or monotonic() >= deadline:
            return least
        stop.pause(_POLL_S)
