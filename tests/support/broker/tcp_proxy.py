"""A TCP proxy on a local port that can freeze, cut, or go away, as networks do."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

Filter = Callable[[bytes], bool]


class TcpProxy:
    """Forward to `target`; use `port`, or `through(url)`, to reach it by way of the proxy."""

    def __init__(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        """Forward to host and port; with `tls`, take it off on the way."""
        self._target = (host, port)
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._flowing = threading.Event()
        self._flowing.set()
        self._stopped = threading.Event()
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        #: Sees what the client sends; True cuts the connection once the server has answered it,
        #: before the answer is passed on.
        self.swallow_answer_to: Filter = lambda _data: False
        self.accepted = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @classmethod
    def to(cls, url: str, *, tls: ssl.SSLContext | None = None) -> TcpProxy:
        parts = urlsplit(url)
        return cls(parts.hostname or "", parts.port or 0, tls=tls)

    def through(self, url: str) -> str:
        """Return the URL with the proxy in place of the server."""
        parts = urlsplit(url)
        credentials, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{credentials}{at}127.0.0.1:{self.port}"))

    def freeze(self) -> None:
        """Keep connections open and let nothing pass, as behind a dead switch."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def cut(self) -> None:
        """Close every connection; new ones are accepted."""
        with self._lock:
            doomed, self._sockets = self._sockets, []
        for sock in doomed:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Refuse connections from now on, and close those that are open."""
        self._stopped.set()
        self._flowing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        if self._tls is not None:
            try:
                client = self._tls.wrap_socket(client, server_side=True)
            except OSError:  # the client does not trust us
                client.close()
                return
        with client, contextlib.suppress(OSError), socket.create_connection(self._target, 5) as server:
            for sock in (client, server):
                # What came in two packets is not to wait for the acknowledgement of the first.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets += [client, server]
            self._pump(client, server)

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        doomed = False
        while not self._stopped.is_set():
            readable, _, _ = select.select([client, server], [], [], 0.1)
            if not self._flowing.wait(0.1) or self._stopped.is_set():
                continue
            for source in readable:
                data = source.recv(65536)
                if not data or (source is server and doomed):
                    return
                if source is client and self.swallow_answer_to(data):
                    doomed = True
                (server if source is client else client).sendall(data)
