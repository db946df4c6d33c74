"""A vhost of one test on a real RabbitMQ, with the topology declared."""

from __future__ import annotations

import base64
import contextlib
import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

import pika
from pika.adapters.blocking_connection import BlockingChannel

from dispatcher.broker import delay_ladder, topology
from dispatcher.message.envelope import decode, encode
from dispatcher.settings import BrokerSettings
from dispatcher.tasks import ROUTING_KEYS, parse_payload
from tests.support.broker.routing import delay_of, queue_for
from tests.support.factories import make_task
from tests.support.waiting import HANG_S, eventually

#: The short rungs first: a test waits on one of them.
LADDER = [delay_ladder.level_name(level) for level in range(delay_ladder.LEVELS)]
#: All of the topology: from the highest level down, as messages go, then where they arrive.
QUEUES = [*reversed(LADDER), *topology.BINDINGS, topology.DEAD_LETTER_QUEUE]


class ManagementApi:
    """RabbitMQ's HTTP API; `url` carries user and password."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.user = unquote(parts.username or "")
        credentials = f"{self.user}:{unquote(parts.password or '')}"
        self._authorization = "Basic " + base64.b64encode(credentials.encode()).decode()
        self._base = f"{parts.scheme}://{parts.hostname}:{parts.port}/api"

    def call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"authorization": self._authorization, "content-type": "application/json"}
        with urlopen(Request(self._base + path, data, headers, method=method), timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None


@dataclass(frozen=True)
class Message:
    """A message as it was found in a queue."""

    body: bytes
    properties: pika.BasicProperties
    routing_key: str
    redelivered: bool

    @property
    def headers(self) -> dict[str, Any]:
        return dict(self.properties.headers or {})

    @property
    def delay_s(self) -> int:
        """The whole seconds for which the ladder holds it."""
        return delay_of(self.routing_key)


def payload_of(message: Message) -> Any:
    task = decode(message.body, message.properties)
    return parse_payload(task.name, task.args, task.kwargs)


EVERYTHING = {"configure": ".*", "write": ".*", "read": ".*"}


@dataclass
class Broker:
    """One vhost, and a user of its name who may do everything in it."""

    api: ManagementApi
    url: str = field(repr=False)
    vhost: str
    _connections: list[pika.BlockingConnection] = field(default_factory=list, repr=False)
    #: Open ones that nobody uses just now.
    _idle: list[pika.BlockingConnection] = field(default_factory=list, repr=False)
    _users: list[str] = field(default_factory=list, repr=False)

    @classmethod
    def create(cls, amqp_url: str, api_url: str) -> Broker:
        api, vhost = ManagementApi(api_url), f"test-{uuid.uuid4().hex[:12]}"
        api.call("PUT", f"/vhosts/{vhost}", {"default_queue_type": "quorum"})
        # For who declares policies and asks for definitions.
        api.call("PUT", f"/permissions/{vhost}/{quote(api.user, safe='')}", EVERYTHING)
        api.call("PUT", f"/users/{vhost}", {"password": "secret", "tags": ""})
        api.call("PUT", f"/permissions/{vhost}/{vhost}", EVERYTHING)
        parts = urlsplit(amqp_url)
        netloc = f"{vhost}:secret@{parts.netloc.rpartition('@')[2]}"
        return cls(api, urlunsplit(parts._replace(netloc=netloc, path=f"/{vhost}")), vhost)

    @property
    def settings(self) -> BrokerSettings:
        return BrokerSettings(self.url)

    def declare(self) -> None:
        topology.declare_topology(self.channel())

    def close(self) -> None:
        """Close what this object opened, and remove the users that it made for a test."""
        for connection in (*self._connections, *self._idle):
            # A connection that a test broke is found out only now.
            with contextlib.suppress(pika.exceptions.AMQPError):
                connection.close()
        self._connections.clear()
        self._idle.clear()
        for user in self._users:
            self.api.call("DELETE", f"/users/{user}")
        self._users.clear()

    def remove(self) -> None:
        self.close()
        self.api.call("DELETE", f"/vhosts/{self.vhost}")
        self.api.call("DELETE", f"/users/{self.vhost}")

    def url_of_user(self, *, configure: str, write: str, read: str) -> str:
        """Make a user with these rights, patterns of names, and return the URL to connect as that user."""
        user = f"{self.vhost}-user-{len(self._users)}"
        self.api.call("PUT", f"/users/{user}", {"password": "secret", "tags": ""})
        self._users.append(user)
        rights = {"configure": configure, "write": write, "read": read}
        self.api.call("PUT", f"/permissions/{self.vhost}/{user}", rights)
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{user}:secret@{host}"))

    def channel(self) -> BlockingChannel:
        """Return a channel on a connection of its own, for a test to use as it likes."""
        connection = pika.BlockingConnection(pika.URLParameters(self.url))
        self._connections.append(connection)
        return connection.channel()

    @contextmanager
    def _brief_channel(self) -> Iterator[BlockingChannel]:
        """Yield a channel for a moment, on an open connection if there is one; threads do not share it."""
        channel = self._reopened() or self._open_quietly().channel()
        connection = channel.connection
        try:
            yield channel
            channel.close()
        except BaseException:
            with contextlib.suppress(pika.exceptions.AMQPError):
                connection.close()
            raise
        self._idle.append(connection)

    def _reopened(self) -> BlockingChannel | None:
        while self._idle:
            # Whoever closes connections, or restarts the broker, closes those that are idle too.
            with contextlib.suppress(pika.exceptions.AMQPError, IndexError):
                return self._idle.pop().channel()
        return None

    def _open_quietly(self) -> pika.BlockingConnection:
        parameters = pika.URLParameters(self.url)
        parameters.heartbeat = 0  # nobody would answer it between two calls
        return pika.BlockingConnection(parameters)

    def publish(
        self,
        queue: str,
        body: bytes,
        *,
        headers: dict[str, Any] | None = None,
        content_type: str | None = "application/json",
        **others: Any,
    ) -> None:
        """Put any message straight into a queue, confirmed."""
        sent = pika.BasicProperties(headers=headers, content_type=content_type, delivery_mode=2, **others)
        with self._brief_channel() as channel:
            channel.confirm_delivery()
            channel.basic_publish("", queue, body, sent, mandatory=True)

    def publish_task(self, **changes: Any) -> str:
        """Publish a valid task, changed as told, to the queue of its kind; return its id."""
        task = make_task(**changes)
        body, how = encode(task)
        queue = queue_for(ROUTING_KEYS.get(task.name, "lab.create"))
        how.pop("delivery_mode")
        self.publish(queue, body, **how)
        return task.id

    def depth(self, queue: str) -> int:
        """Return the count of ready messages, live."""
        return self._depths([queue])[0]

    def _depths(self, queues: Sequence[str]) -> list[int]:
        return [messages for messages, _ in self.look(queues)]

    def look(self, queues: Sequence[str]) -> list[tuple[int, int]]:
        """Return the ready messages and the consumers of each queue, live."""
        with self._brief_channel() as channel:
            found = [channel.queue_declare(queue, passive=True).method for queue in queues]
        return [(int(one.message_count), int(one.consumer_count)) for one in found]

    def empty(self) -> bool:
        """Remove all messages that wait in the topology's queues; tell whether there were any."""
        with self._brief_channel() as channel:
            found = [channel.queue_purge(queue).method.message_count for queue in QUEUES]
        return any(found)

    def consumers(self, queue: str) -> int:
        """Return how many consumers wait for messages, live."""
        return self.look([queue])[0][1]

    def take(self, queue: str, *, timeout_s: float = HANG_S) -> Message:
        """Remove and return the next message."""
        return self._take([queue], timeout_s)

    def take_delayed(self, *, timeout_s: float = HANG_S) -> Message:
        """Remove and return a message that waits on the ladder; `delay_s` says how long it would."""
        return self._take(LADDER, timeout_s)

    def _take(self, queues: Sequence[str], timeout_s: float) -> Message:
        def get() -> Message | None:
            for queue in queues:
                method, found, body = channel.basic_get(queue, auto_ack=True)
                if method is not None and found is not None and body is not None:
                    return Message(body, found, method.routing_key, method.redelivered)
            return None

        with self._brief_channel() as channel:
            return eventually(get, timeout_s, what=f"a message in {', '.join(queues)}")

    def is_empty(self, *queues: str) -> bool:
        return not any(self._depths(queues or [*topology.BINDINGS]))

    def delayed(self) -> int:
        """Return the count of messages that wait on the ladder."""
        return sum(self._depths(LADDER))

    def connection_names(self) -> dict[str, str]:
        """Return the client-given name of each connection -> the broker's name of it."""
        listed = self.api.call("GET", f"/vhosts/{self.vhost}/connections")
        return {item.get("client_properties", {}).get("connection_name", ""): item["name"] for item in listed}

    def close_connection(self, client_name: str) -> None:
        """Close a connection from the broker's side, as an operator can."""
        # The management plugin lists a connection only after its first statistics event.
        name = eventually(
            lambda: self.connection_names().get(client_name), HANG_S, what=f"connection {client_name}"
        )
        self.api.call("DELETE", f"/connections/{quote(name, safe='')}")

    def evidence(self) -> str:
        lines = []
        for queue in (*topology.BINDINGS, topology.DEAD_LETTER_QUEUE):
            try:
                lines.append(f"{queue}: {self.depth(queue)} ready")
            except pika.exceptions.AMQPError as exc:
                lines.append(f"{queue}: {exc!r}")
        lines.append(f"delay ladder: {self._waiting()} ready")
        return "\n".join(lines)

    def _waiting(self) -> str:
        try:
            return str(self.delayed())
        except pika.exceptions.AMQPError as exc:
            return repr(exc)
