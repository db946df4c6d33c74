"""Vhosts with the topology, lent to one test after the other: 32 quorum queues cost a second to declare.

A vhost comes back emptied and compared with what was declared, is mended where it differs, and is thrown away
if that fails. It then rests while others are lent, since what a broker does after the end of a connection
(requeues, dead letters on their way) is done a moment later.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any
from urllib.parse import quote

import pika

from tests.support.broker.rabbitmq import QUEUES, Broker
from tests.support.waiting import SOON_S, eventually

#: Vhosts that rest before one of them is lent again.
RESTING = 2

Declared = dict[str, Any]


class VhostPool:
    """Vhosts of one test process; `thrown_away` counts those that could not be lent again."""

    def __init__(self, amqp_url: str, api_url: str, *, patience_s: float = SOON_S) -> None:
        """`patience_s`: for connections of processes that were killed, before they are somebody's error."""
        self._urls = amqp_url, api_url
        self._patience_s = patience_s
        self._resting: deque[Broker] = deque()
        self._declared: Declared = {}
        self.thrown_away = 0

    def lend(self) -> Broker:
        """Return a vhost with the topology, without messages and without consumers."""
        while len(self._resting) > RESTING:
            broker = self._resting.popleft()
            if _becomes_empty(broker):
                return broker
            self._throw_away(broker)
        broker = Broker.create(*self._urls)
        broker.declare()
        self._declared = self._declared or _declared(broker)
        return broker

    def take_back(self, broker: Broker) -> tuple[list[str], list[str]]:
        """Return what a test left that would disturb others, open connections, and what it changed."""
        broker.close()
        still_open = _open_connections(broker, self._patience_s)
        left = [f"connection {name}" for name in still_open]
        left += [f"user {name}" for name in _remove_users(broker)]
        changed = _differences(self._declared, _declared(broker))
        if changed:
            _mend(broker, self._declared)
        if still_open or (changed and _differences(self._declared, _declared(broker))):
            self._throw_away(broker)
        else:
            self._resting.append(broker)
        return left, changed

    def close(self) -> None:
        while self._resting:
            self._resting.pop().remove()

    def _throw_away(self, broker: Broker) -> None:
        self.thrown_away += 1
        broker.remove()


def _becomes_empty(broker: Broker) -> bool:
    """Purge until nothing is found any more; False if somebody consumes."""
    for _ in range(5):
        found = broker.look(QUEUES)
        if any(consumers for _, consumers in found):
            return False
        if not any(messages for messages, _ in found):
            return True
        broker.empty()
    return False


def _open_connections(broker: Broker, patience_s: float) -> list[str]:
    """Return the names of connections that nobody closed.

    The broker's list by user is kept as connections come and go; its other lists are some seconds old
    (https://www.rabbitmq.com/docs/management).
    """
    path = f"/connections/username/{broker.vhost}"
    with contextlib.suppress(AssertionError):
        eventually(lambda: not broker.api.call("GET", path), patience_s)
        return []
    return sorted(one["name"] for one in broker.api.call("GET", path))


def _remove_users(broker: Broker) -> list[str]:
    """Remove the users that a test made by hand, and return their names."""
    names = [one["name"] for one in broker.api.call("GET", "/users")]
    left = [name for name in names if name.startswith(f"{broker.vhost}-")]
    for name in left:
        broker.api.call("DELETE", f"/users/{name}")
    return left


def _declared(broker: Broker) -> Declared:
    """Return kind/name -> definition of all that is in the vhost."""
    found = broker.api.call("GET", f"/definitions/{broker.vhost}")
    return {
        f"{kind} {_name(kind, one)}": one
        for kind in ("queues", "exchanges", "bindings", "policies", "parameters")
        for one in found.get(kind, [])
    }


def _name(kind: str, one: dict[str, Any]) -> str:
    if kind != "bindings":
        return str(one["name"])
    match = "".join(f" {key}={value}" for key, value in sorted(one["arguments"].items()))
    return f"{one['source']} -> {one['destination']} {one['routing_key']}{match}"


def _differences(declared: Declared, found: Declared) -> list[str]:
    both = declared.keys() & found.keys()
    return sorted(
        [f"{name} is gone" for name in declared.keys() - found.keys()]
        + [f"{name} was left" for name in found.keys() - declared.keys()]
        + [f"{name} was changed" for name in both if declared[name] != found[name]]
    )


def _mend(broker: Broker, declared: Declared) -> None:
    """Delete what does not belong here, and declare what does."""
    found = _declared(broker)
    for full_name, one in found.items():
        if declared.get(full_name) == one:
            continue
        kind, _, name = full_name.partition(" ")
        if kind in ("queues", "exchanges", "policies"):
            broker.api.call("DELETE", f"/{kind}/{broker.vhost}/{quote(name, safe='')}")
    # Bindings that are left over cannot be told from here; whoever has one is thrown away.
    with contextlib.suppress(pika.exceptions.AMQPError):
        broker.declare()
    broker.close()
