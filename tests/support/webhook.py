"""A receiver of webhooks: a real HTTP server that reads the standard of signatures for itself."""

from __future__ import annotations

import base64
import hmac
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.http_server import Answer, Request, ScriptedServer

SECRET = "whsec_" + base64.b64encode(b"secret of the tests, 32 bytes ok").decode()


@dataclass
class Receiver:
    """`answer` decides about each call; `calls` has what came, verified or not."""

    url: str = ""
    answer: Callable[[Request], Answer] = lambda _request: Answer(204, {})
    calls: list[Request] = field(default_factory=list)

    def __call__(self, request: Request) -> Answer:
        self.calls.append(request)
        return self.answer(request)

    def bodies(self) -> list[Any]:
        """Return the bodies of all calls; each must be signed, and fresh."""
        for request in self.calls:
            assert verifies(request, SECRET), request
        return [request.json() for request in self.calls]


@contextmanager
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    with ScriptedServer(found) as server:
        found.url = f"{server.url}/hooks/lab?key=hidden-in-url"
        yield found


def verifies(request: Request, secret: str) -> bool:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    sent_at = request.headers["webhook-timestamp"]
    assert abs(time.time() - int(sent_at)) < 60
    content = request.headers["webhook-id"] + "." + sent_at + "." + request.body.decode()
    expected = base64.b64encode(hmac.new(key, content.encode(), "sha256").digest()).decode()
    versions = [part.split(",", 1) for part in request.headers["webhook-signature"].split(" ")]
    return any(version == "v1" and hmac.compare_digest(given, expected) for version, given in versions)
