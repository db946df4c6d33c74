"""Whether a Service answers yet: the nodes' proxies learn of a Ready pod some 100 ms after the API does."""

from __future__ import annotations

import socket
import time

#: Seconds after which a lab counts as RUNNING all the same: its pod is Ready, only the way there is slow.
PATIENCE_S = 3.0
#: Short, because an address that no endpoint serves yet may swallow the first packet, and TCP repeats it
#: after a second. A cluster's own network answers within a few milliseconds.
_CONNECT_S = 0.05
_RETRY_S = 0.02


def wait_answers(host: str, port: int) -> bool:
    """Return True once the address accepts a connection, False when it did not for PATIENCE_S seconds."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), timeout=_CONNECT_S).close()
        except OSError:
            time.sleep(_RETRY_S)
        else:
            return True
    return False
