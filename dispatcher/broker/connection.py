"""Open connections of pika that end every wait, and that survive header tables which pika gives up on."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pika
import pika.data
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPConnectionError, StreamLostError

from dispatcher.broker.urls import pika_url
from dispatcher.errors import InvalidSettings
from dispatcher.settings import BrokerSettings
from dispatcher.text import without_passwords
from dispatcher.trust import make_context, why_untrusted

_LENGTH = struct.Struct(">I")


class BrokerUnreachable(AMQPConnectionError):  # type: ignore[misc]  # pika has no types
    """Raised when no connection can be opened; the text says to where, and why not."""

    def __repr__(self) -> str:
        return str(self)  # as it is shown where pika's own errors need their type

    def __str__(self) -> str:
        return str(self.args[0])


def url_parameters(settings: BrokerSettings) -> pika.URLParameters:
    """Return pika's reading of the URL, with the authorities of CA_FILE unless its ssl_options name some.

    Raises InvalidSettings, which does not show the URL.
    """
    parameters = _read_url(settings)
    if parameters.ssl_options is not None and "ssl_options" not in urlsplit(settings.url).query:
        # By name: pika asks for no check of the host name when it makes a context from its defaults.
        parameters.ssl_options = pika.SSLOptions(make_context(settings.ca_file), parameters.host)
    return parameters


def _read_url(settings: BrokerSettings) -> pika.URLParameters:
    try:
        return pika.URLParameters(pika_url(settings.url))
    # What pika's parsers raise for a bad port, heartbeat, ssl_options and the files named there.
    except (ValueError, TypeError, SyntaxError, OSError, KeyError) as exc:
        raise InvalidSettings([f"AMQP_URL: pika cannot read it ({type(exc).__name__})"]) from exc


def connect(
    settings: BrokerSettings, *, name: str, timeout_s: float | None = None
) -> pika.BlockingConnection:
    """Open a connection that the broker's management lists under `name`.

    Raises BrokerUnreachable after one attempt per address, of at most `timeout_s` seconds each; the
    caller owns retries.
    """
    parameters = url_parameters(settings)
    parameters.heartbeat = settings.heartbeat_s
    parameters.blocked_connection_timeout = settings.publish_timeout_s
    parameters.socket_timeout = settings.connect_timeout_s
    parameters.stack_timeout = 2 * settings.connect_timeout_s
    if timeout_s is not None:
        parameters.socket_timeout = min(parameters.socket_timeout, timeout_s)
        parameters.stack_timeout = min(parameters.stack_timeout, timeout_s)
    parameters.client_properties = {"connection_name": name}
    try:
        return pika.BlockingConnection(parameters)
    # A name that nobody knows, and a timeout of the handshake, are no AMQPError of pika's.
    except (AMQPConnectionError, AMQPConnectorException, OSError) as exc:
        vhost = "" if parameters.virtual_host == "/" else f" vhost {parameters.virtual_host}"
        where = f"{parameters.host}:{parameters.port}{vhost}"
        raise BrokerUnreachable(without_passwords(f"no connection to {where}: {_reason(exc)}")) from exc


def _reason(exc: BaseException) -> str:
    """Return what the system or the broker says, of an error that pika has put into others."""
    if untrusted := why_untrusted(exc):
        return untrusted
    while inner := getattr(exc, "exception", None) or next(
        (arg for arg in exc.args if isinstance(arg, BaseException)), None
    ):
        exc = inner
    return getattr(exc, "strerror", None) or getattr(exc, "reply_text", None) or str(exc) or repr(exc)


@contextmanager
def answers_within(connection: pika.BlockingConnection, timeout_s: float) -> Iterator[None]:
    """Break the connection, so that what waits on it raises StreamLostError, if the block takes longer.

    pika's calls wait for the broker's answer without a limit but two heartbeats, about 70 s, when
    the network swallows everything; its own timers cannot be reached otherwise.
    """
    if connection.is_closed:
        yield
        return
    impl = connection._impl
    error = StreamLostError(f"no answer from the broker within {timeout_s:.1f} s")
    timer = impl._adapter_call_later(max(0.01, timeout_s), lambda: impl._terminate_stream(error))
    try:
        yield
    finally:
        impl._adapter_remove_timeout(timer)


class Unreadable(str):
    """Stands for a value that cannot be read, and so not be written again."""

    __slots__ = ()


@contextmanager
def tolerant_tables() -> Iterator[None]:
    """Read what pika cannot as a text that says so, for every connection of this process meanwhile.

    RabbitMQ keeps whatever has the form of a table: a time in the year 10^11, or tables nested 18,000 deep.
    Containers that met such a message would lose their connection, until the queue's delivery limit moves it
    to the dead-letter queue, where people must see it.
    """
    original = pika.data.decode_value

    def decode_value(encoded: bytes, offset: int) -> tuple[Any, int]:
        try:
            value, end = original(encoded, offset)
            return value, int(end)
        except (OverflowError, ValueError, OSError):
            if encoded[offset : offset + 1] != b"T":
                raise
            return Unreadable("a time that cannot be read"), offset + 9
        except RecursionError:
            if encoded[offset : offset + 1] not in (b"F", b"A"):
                raise
            (length,) = _LENGTH.unpack_from(encoded, offset + 1)
            return Unreadable("nested too deep to be read"), offset + 1 + _LENGTH.size + length

    pika.data.decode_value = decode_value
    try:
        yield
    finally:
        pika.data.decode_value = original
