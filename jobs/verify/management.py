"""How many messages consumers hold, which AMQP does not say: the management API does, up to 10 s late."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection
from http.client import HTTPException
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, urlopen

from dispatcher.connection import url_parameters
from dispatcher.settings import BrokerSettings

TIMEOUT_S = 10


class ManagementAway(Exception):
    """Raised when the management API does not answer, or not with what is asked for."""


def unacked(api_url: str, broker: BrokerSettings, queues: Collection[str]) -> dict[str, int]:
    """Return queue -> messages that are delivered and not settled; `api_url` carries user and password."""
    vhost = quote(url_parameters(broker).virtual_host, safe="")
    return {queue: _unacked(api_url, f"/api/queues/{vhost}/{quote(queue, safe='')}") for queue in queues}


def _unacked(api_url: str, path: str) -> int:
    parts = urlsplit(api_url)
    credentials = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    headers = {"authorization": "Basic " + base64.b64encode(credentials.encode()).decode()}
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    request = Request(address + path + "?columns=messages_unacknowledged", headers=headers)  # noqa: S310  # scheme is checked
    try:
        with urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            found = json.load(answer)
    except (OSError, HTTPException, ValueError) as exc:
        raise ManagementAway(f"{path}: {exc}") from exc
    # A queue that is new has no figures yet, and an empty object comes as an empty list.
    return int(found["messages_unacknowledged"]) if found else 0
