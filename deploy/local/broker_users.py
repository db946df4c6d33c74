"""Users and permissions of a RabbitMQ that runs: by itself it reads its definitions only when it starts."""

from __future__ import annotations

import base64
from http.client import HTTPConnection, HTTPException
from urllib.parse import unquote, urlsplit

from deploy.local import credentials, services
from deploy.local.errors import LocalClusterError
from deploy.local.paths import Layout

TIMEOUT_S = 20


def bring_up_to_date(layout: Layout) -> None:
    """Hand the running broker the definitions of this `up`; open connections stay."""
    made = credentials.ensure(layout)
    urls = services.Urls.of(made, services.addresses(layout))
    load_definitions(urls.rabbitmq_api, credentials.rabbitmq_definitions(made))


def load_definitions(api_url: str, definitions: str) -> None:
    """Add or change what a definitions file names; `api_url` carries an administrator's user and password."""
    parts = urlsplit(api_url)
    user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    headers = {
        "authorization": "Basic " + base64.b64encode(user.encode()).decode(),
        "content-type": "application/json",
    }
    address = f"{parts.hostname}:{parts.port}"
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", "/api/definitions", definitions.encode(), headers)
        answer = connection.getresponse()
        said = answer.read().decode(errors="replace")
    except (HTTPException, OSError) as exc:
        raise LocalClusterError(f"RabbitMQ at {address} did not take users and permissions: {exc}") from exc
    finally:
        connection.close()
    if answer.status >= 300:
        raise LocalClusterError(
            f"RabbitMQ at {address} did not take users and permissions: {answer.status} {said[:300]}"
        )
