"""Open a socket to the broker, plain or TLS: every wait has an end, and no secret is in an error."""

from __future__ import annotations

import math
import select
import socket
import ssl
import time

import pika

from dispatcher.trust import why_untrusted

#: Bytes per read; a full window of confirms has 21 KiB.
_READ_BYTES = 65_536
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class LinkError(OSError):
    """Raised when the connection is of no use any more."""


class LinkTimeout(LinkError):
    """Raised when the broker did not take or answer something before the deadline."""


class Transport:
    """Bytes to and from the broker over one socket; deadlines are of time.monotonic()."""

    def __init__(self, parameters: pika.URLParameters, deadline: float) -> None:
        """Connect to the first address that answers. Raises LinkError."""
        try:
            self._socket = _secured(_connected(parameters, deadline), parameters)
        # ssl.SSLError and socket.gaierror are OSErrors; a host name that no DNS can have is a UnicodeError.
        except (OSError, UnicodeError) as exc:
            raise LinkError(f"cannot connect: {why_untrusted(exc) or exc}") from exc
        # Not settimeout: with it Python makes three system calls for one.
        self._socket.setblocking(False)
        # Green threads of eventlet, and Windows, have only select.
        self._poller = select.poll() if hasattr(select, "poll") else None
        if self._poller is not None:
            self._poller.register(self._socket, select.POLLIN)

    def send(self, data: bytes, deadline: float) -> None:
        """Send all of it. Raises LinkTimeout, after which some of it may be sent, or LinkError."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except _WOULD_BLOCK as exc:
                reading = isinstance(exc, ssl.SSLWantReadError)
                if not self._wait(reading=reading, wait_s=deadline - time.monotonic()):
                    raise LinkTimeout("broker does not read what is sent to it") from exc
            except OSError as exc:
                raise LinkError(f"connection lost while sending: {exc}") from exc

    def receive(self, wait_s: float) -> bytes:
        """Return what arrives within so many seconds, or nothing. Raises LinkError."""
        deadline = time.monotonic() + wait_s
        # Nothing is there at once but what TLS has unpacked already.
        ready = self._unpacked() or self._wait(reading=True, wait_s=wait_s)
        while ready:
            try:
                data = self._socket.recv(_READ_BYTES)
            except _WOULD_BLOCK as exc:
                reading = not isinstance(exc, ssl.SSLWantWriteError)
                ready = self._wait(reading=reading, wait_s=deadline - time.monotonic())
                continue
            except OSError as exc:
                raise LinkError(f"connection lost: {exc}") from exc
            if not data:
                raise LinkError("connection closed by the broker or the network")
            return data
        return b""

    def close(self) -> None:
        self._socket.close()

    def _unpacked(self) -> bool:
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0

    def _wait(self, *, reading: bool, wait_s: float) -> bool:
        wait_s = max(0.0, wait_s)
        if self._poller is None:
            waiting = [self._socket]
            ready = select.select(waiting if reading else [], [] if reading else waiting, [], wait_s)
            return bool(ready[0] or ready[1])
        self._poller.modify(self._socket, select.POLLIN if reading else select.POLLOUT)
        return bool(self._poller.poll(math.ceil(1000 * wait_s)))


def _connected(parameters: pika.URLParameters, deadline: float) -> socket.socket:
    """Try the addresses of the host in turn, each with its share of the time that is left."""
    addresses = socket.getaddrinfo(parameters.host, parameters.port, type=socket.SOCK_STREAM)
    problem = OSError(f"{parameters.host} has no address")
    for tried, (family, kind, protocol, _, address) in enumerate(addresses):
        opened = socket.socket(family, kind, protocol)
        try:
            left_s = max(0.01, deadline - time.monotonic())
            opened.settimeout(left_s / (len(addresses) - tried))
            opened.connect(address)
            # The TLS handshake has what is left.
            opened.settimeout(max(0.01, deadline - time.monotonic()))
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except OSError as exc:
            opened.close()
            problem = exc
        except BaseException:
            opened.close()
            raise
        else:
            return opened
    raise problem


def _secured(opened: socket.socket, parameters: pika.URLParameters) -> socket.socket:
    if parameters.ssl_options is None:
        return opened
    try:
        hostname = parameters.ssl_options.server_hostname or parameters.host
        secured: socket.socket = parameters.ssl_options.context.wrap_socket(opened, server_hostname=hostname)
    except BaseException:
        opened.close()
        raise
    return secured
