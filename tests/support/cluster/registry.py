"""Registries of images as containerd meets them: one that refuses, one that never answers, one that is away.

containerd asks a registry on a loopback address by plain HTTP, and the node shares ours.
"""

from __future__ import annotations

import socket
import threading
from types import TracebackType

from tests.support.containers.container import free_port
from tests.support.http_server import Answer, Request, ScriptedServer

#: First part of an image's path -> what the registry says of it. All others are not there.
_ANSWERS = {"private": 401, "denied": 403, "busy": 503, "limited": 429}


def _answer(request: Request) -> Answer:
    _, _, path = request.path.partition("/v2/")
    status = _ANSWERS.get(path.partition("/")[0], 404)
    return Answer(status, {"errors": [{"code": "TEST", "message": "as the test wants it"}]})


class Registries:
    """`answering`, `silent` and `absent` are the hosts to put before an image's path."""

    def __init__(self) -> None:
        self._server = ScriptedServer(_answer)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._held: list[socket.socket] = []
        self.answering = self._server.url.removeprefix("http://")
        self.silent = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.absent = f"127.0.0.1:{free_port()}"

    def pulls(self, image: str) -> int:
        """Return how often the one that answers was asked for an image; others were never."""
        _, _, name = image.partition("/")
        path, _, tag = name.rpartition(":")
        asked = [
            request.path.partition("?")[0] for request in self._server.requests if request.method == "HEAD"
        ]
        return asked.count(f"/v2/{path}/manifests/{tag}")

    def __enter__(self) -> Registries:
        self._server.__enter__()
        threading.Thread(target=self._hold, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for held in self._held:
            held.close()
        self._server.__exit__(kind, error, trace)

    def _hold(self) -> None:
        while True:
            try:
                self._held.append(self._listener.accept()[0])
            except OSError:
                return
