"""A real HTTP server whose answers a test scripts, for what a real API server cannot be made to do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    status: int = 200
    #: A dict goes as JSON; a list goes as one chunk each, as a watch does.
    content: Any = None
    #: Seconds by which the server's clock is ahead.
    ahead_s: float = 0.0
    #: Close the connection in the middle of the answer.
    broken: bool = False


Script = Callable[[Request], Answer]


class ScriptedServer:
    """Serve `script`; `requests` keeps what was asked, in order."""

    def __init__(self, script: Script) -> None:
        self.requests: list[Request] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(script, self.requests))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def evidence(self) -> str:
        return "\n".join(f"{request.method} {request.path}" for request in self.requests)


def scripted(*answers: Answer) -> Script:
    """Return a script that gives the answers one after the other, the last one for ever."""
    left = list(answers)
    return lambda _request: left.pop(0) if len(left) > 1 else left[0]


def status_object(code: int, reason: str, message: str) -> dict[str, Any]:
    return {"kind": "Status", "code": code, "reason": reason, "message": message}


def _handler(script: Script, requests: list[Request]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Or the body of an answer waits, 40 ms, for the acknowledgement of its headers.
        disable_nagle_algorithm = True

        ahead_s = 0.0

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string((timestamp or time.time()) + self.ahead_s)

        def answer(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, self.path, headers, self.rfile.read(length))
            requests.append(request)
            answer = script(request)
            self.ahead_s = answer.ahead_s
            if isinstance(answer.content, list):
                self._stream(answer)
            else:
                self._send(answer)

        do_GET = do_PATCH = do_DELETE = do_POST = do_PUT = do_HEAD = answer

        def _send(self, answer: Answer) -> None:
            content = answer.content
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(answer.status)
            self.send_header("content-length", str(len(body) + (100 if answer.broken else 0)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            self.close_connection = answer.broken

        def _stream(self, answer: Answer) -> None:
            self.send_response(answer.status)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for part in answer.content:
                data = part if isinstance(part, bytes) else json.dumps(part).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()
            if not answer.broken:
                self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # the base's name
            """Keep the test output free of access logs."""

    return Handler
