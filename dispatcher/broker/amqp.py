"""Keep a connection that only publishes, with one channel in confirm mode, and bound every wait on it.

pika knows the methods and reads the frames. Its connections are not used here, because their event loop
costs more than all else in a confirmed publish (figures in docs/benchmark.md), and they have no public way
to publish many messages before waiting for the confirms, nor to bound a wait.

Facts: https://www.rabbitmq.com/amqp-0-9-1-reference (frames and methods),
https://www.rabbitmq.com/docs/confirms (confirms, returns come before them),
https://www.rabbitmq.com/docs/connection-blocked (alarms), https://www.rabbitmq.com/docs/heartbeats.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from pika import frame, spec
from pika.exceptions import AMQPError

from dispatcher.broker.amqp_properties import encode_properties
from dispatcher.broker.connection import url_parameters
from dispatcher.broker.outgoing import Outgoing
from dispatcher.broker.transport import LinkError, LinkTimeout, Transport
from dispatcher.settings import BrokerSettings

_CHANNEL = 1
_FRAME_HEADER = struct.Struct(">BHL")
_FRAME_END = bytes((spec.FRAME_END,))
_CONTENT = struct.Struct(">HHQ")
#: A basic.ack up to its arguments, delivery tag and the bit `multiple`.
_ACK_ARGUMENTS = struct.Struct(">Q?")
_ACK = _FRAME_HEADER.pack(spec.FRAME_METHOD, _CHANNEL, 4 + _ACK_ARGUMENTS.size)
_ACK += spec.Basic.Ack.INDEX.to_bytes(4, "big")
#: Bytes of a frame around its payload: header and end mark.
_FRAME_OVERHEAD = 8


class ClosedByBroker(LinkError):
    """Raised when the broker closed the channel or the connection, with its code and text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"({code}) {text}")
        self.code = code
        self.text = text


class LoginRefused(ClosedByBroker):
    """Raised when the broker does not let this user in: a wrong password, or virtual host."""


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The broker has taken a message, or refused it (`ok` is False), or all up to it (`multiple`)."""

    tag: int
    multiple: bool
    ok: bool


@dataclass(frozen=True, slots=True)
class Returned:
    """A mandatory message had no queue; its confirm follows."""

    correlation_id: str | None


Event: TypeAlias = Confirmed | Returned


def _frame(kind: int, payload: bytes) -> bytes:
    return _FRAME_HEADER.pack(kind, _CHANNEL, len(payload)) + payload + _FRAME_END


@lru_cache(maxsize=64)
def _publish_method(exchange: str, routing_key: str, mandatory: bool) -> bytes:
    publish = spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
    return bytes(frame.Method(_CHANNEL, publish).marshal())


class PublishLink:
    """One connection; not safe to share between threads. Deadlines are of time.monotonic()."""

    def __init__(self, settings: BrokerSettings, *, name: str, deadline: float) -> None:
        """Connect, log in and select confirms. Raises LinkError."""
        self._parameters = url_parameters(settings)
        self._received = b""
        self._failure: LinkError | None = None
        self._last_sent = self._last_read = time.monotonic()
        #: Why the broker takes no messages at present, such as "low on memory".
        self.blocked: str | None = None
        #: Delivery tag of the last message; the first has 1.
        self.last_tag = 0
        self.heartbeat_s = 0
        self._frame_max = spec.FRAME_MIN_SIZE
        limit = min(deadline, time.monotonic() + settings.connect_timeout_s)
        self._transport = Transport(self._parameters, limit)
        try:
            self._log_in(settings.heartbeat_s, name, limit)
        except ClosedByBroker as exc:
            self._transport.close()
            raise LoginRefused(exc.code, exc.text) from exc
        except BaseException:
            self._transport.close()
            raise

    def marshal(self, out: Outgoing) -> bytes:
        """Return the frames of one message. Raises ValueError for what AMQP cannot say."""
        body = out.body
        header = _CONTENT.pack(spec.BasicProperties.INDEX, 0, len(body)) + encode_properties(out.properties)
        chunk = self._frame_max - _FRAME_OVERHEAD
        if len(header) > chunk:
            raise ValueError(f"headers have {len(header)} bytes; at most {chunk} are allowed")
        method = _publish_method(out.exchange, out.routing_key, out.mandatory)
        parts = [method, _frame(spec.FRAME_HEADER, header)]
        parts += [_frame(spec.FRAME_BODY, body[at : at + chunk]) for at in range(0, len(body), chunk)]
        return b"".join(parts)

    def send(self, frames: bytes, count: int, deadline: float) -> None:
        """Send the frames of `count` messages. Raises LinkError."""
        self._raise_failure()
        self._write(frames, deadline)
        self.last_tag += count

    def receive(self, deadline: float) -> list[Event]:
        """Wait for the broker and return what it says of messages, perhaps nothing. Raises LinkError.

        Heartbeats are sent meanwhile; the list is empty once the deadline has passed.
        """
        self._raise_failure()
        if self._received and (events := self._take_events()):
            return events
        while (left_s := deadline - time.monotonic()) > 0:
            slice_s = min(left_s, self.heartbeat_s / 2) if self.heartbeat_s else left_s
            if self._read(slice_s):
                return self._take_events()
            self.keep_alive(deadline)
        return []

    def _take_events(self) -> list[Event]:
        """Return what was said before the broker closed, if it did; that is raised by the next call."""
        events: list[Event] = []
        try:
            events.extend(self._events())
        except LinkError as exc:
            if not events:
                raise
            self._failure = exc
        return events

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def poll(self) -> None:
        """Take note of what has arrived and send a heartbeat if one is due. Raises LinkError."""
        while self._read(0.001):
            list(self._events())
        self.keep_alive(time.monotonic() + 1)

    def keep_alive(self, deadline: float) -> None:
        """Send a heartbeat if one is due. Raises LinkError when the broker has been silent for too long."""
        if not self.heartbeat_s:
            return
        now = time.monotonic()
        if now - self._last_read > 2 * self.heartbeat_s:
            raise LinkTimeout(f"no heartbeat from the broker for {2 * self.heartbeat_s} s")
        if now - self._last_sent >= self.heartbeat_s / 2:
            self._write(frame.Heartbeat().marshal(), deadline)

    def close(self, deadline: float) -> None:
        """Say goodbye if there is time, and close the socket."""
        try:
            self._call(0, spec.Connection.Close(200, "Goodbye", 0, 0), spec.Connection.CloseOk, deadline)
        except LinkError:
            return  # it was gone already
        finally:
            self._transport.close()

    def abandon(self) -> None:
        """Close the socket without a word, as a forked child must: the parent goes on with it."""
        self._transport.close()

    def _log_in(self, heartbeat_s: int, name: str, deadline: float) -> None:
        self._write(frame.ProtocolHeader().marshal(), deadline)
        start = self._wait_for(spec.Connection.Start, deadline)
        mechanism, response = self._parameters.credentials.response_for(start)
        if mechanism is None:
            raise LinkError(f"broker offers only {start.mechanisms!r} to log in, not PLAIN")
        capabilities = (
            "publisher_confirms",
            "connection.blocked",
            "authentication_failure_close",
            "basic.nack",
        )
        client = {
            "connection_name": name,
            "product": "autolabs dispatcher",
            "capabilities": dict.fromkeys(capabilities, True),
        }
        answer = spec.Connection.StartOk(client, mechanism, response, "en_US")
        tune = self._call(0, answer, spec.Connection.Tune, deadline)
        self._frame_max = tune.frame_max or spec.FRAME_MAX_SIZE
        self.heartbeat_s = min(heartbeat_s, tune.heartbeat) if tune.heartbeat else heartbeat_s
        self._tell(0, spec.Connection.TuneOk(tune.channel_max, self._frame_max, self.heartbeat_s), deadline)
        vhost = spec.Connection.Open(self._parameters.virtual_host)
        self._call(0, vhost, spec.Connection.OpenOk, deadline)
        self._call(_CHANNEL, spec.Channel.Open(), spec.Channel.OpenOk, deadline)
        self._call(_CHANNEL, spec.Confirm.Select(), spec.Confirm.SelectOk, deadline)

    def _tell(self, channel: int, method: Any, deadline: float) -> None:
        self._write(frame.Method(channel, method).marshal(), deadline)

    def _call(self, channel: int, method: Any, answer: type, deadline: float) -> Any:
        self._tell(channel, method, deadline)
        return self._wait_for(answer, deadline)

    def _wait_for(self, answer: type, deadline: float) -> Any:
        while True:
            for got in self._frames():
                method = getattr(got, "method", None)
                if isinstance(method, answer):
                    return method
                self._event_of(got)
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not self._read(left_s):
                raise LinkTimeout(f"broker did not answer with {answer.__name__} in time")

    def _write(self, data: bytes, deadline: float) -> None:
        try:
            self._transport.send(data, deadline)
        except LinkTimeout:
            self._look_why_blocked()
            raise
        self._last_sent = time.monotonic()

    def _look_why_blocked(self) -> None:
        try:
            if self._read(0.01):
                list(self._events())
        except LinkError:
            return  # the timeout is the news

    def _read(self, wait_s: float) -> bool:
        """Wait for bytes; False if none came in time."""
        data = self._transport.receive(wait_s)
        if not data:
            return False
        self._last_read = time.monotonic()
        self._received += data
        return True

    def _frames(self) -> Iterator[Any]:
        """Yield the whole frames among the bytes received, and keep the rest."""
        data, at = self._received, 0
        try:
            while len(data) - at >= _FRAME_OVERHEAD:
                end = at + _FRAME_OVERHEAD + _FRAME_HEADER.unpack_from(data, at)[2]
                if end > len(data):
                    break
                raw = data[at:end]
                at = end
                if raw.startswith(_ACK):  # nearly every frame; pika takes ten times as long for it
                    tag, multiple = _ACK_ARGUMENTS.unpack_from(raw, len(_ACK))
                    yield Confirmed(tag, multiple, ok=True)
                else:
                    yield frame.decode_frame(raw)[1]
        except (AMQPError, KeyError, struct.error) as exc:
            raise LinkError(f"broker sent something that is not AMQP 0-9-1: {exc!r}") from exc
        finally:
            self._received = data[at:]

    def _events(self) -> Iterator[Event]:
        for got in self._frames():
            if event := self._event_of(got):
                yield event

    def _event_of(self, got: Any) -> Event | None:
        """Return what a frame says of a message, if it does. Raises ClosedByBroker."""
        if isinstance(got, Confirmed):
            return got
        method = getattr(got, "method", None)
        match method:
            case spec.Basic.Nack():
                return Confirmed(method.delivery_tag, method.multiple, ok=False)
            case spec.Connection.Blocked():
                self.blocked = method.reason or "blocked"
            case spec.Connection.Unblocked():
                self.blocked = None
            case spec.Channel.Close():
                raise ClosedByBroker(method.reply_code, method.reply_text)
            case spec.Connection.Close():
                self._tell(0, spec.Connection.CloseOk(), time.monotonic() + 1)
                raise ClosedByBroker(method.reply_code, method.reply_text)
            case None if isinstance(got, frame.Header):
                # The content of a returned message; its body frames follow and say nothing new.
                return Returned(got.properties.correlation_id)
        return None
