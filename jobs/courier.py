"""How a notification leaves the platform: an event on the broker, and a signed webhook if one is set.

Neither raises: what went wrong is returned as a sentence, without passwords. After a few that got no answer
the rest of a process's notifications are not tried that way.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable

from dispatcher.errors import PublishError
from dispatcher.publisher import Publisher
from dispatcher.redaction import printable, scrubbed
from dispatcher.topology import EVENTS_EXCHANGE
from jobs.bounded import TookTooLong, within
from jobs.settings import WebhookSettings

#: Seconds for the broker's confirm.
PUBLISH_TIMEOUT_S = 3.0
#: Seconds for a webhook in all, from the look-up of its name to the end of its answer.
WEBHOOK_TIMEOUT_S = 3.0
#: Failures in a row after which a way is not tried again.
_PATIENCE = 3
#: Bytes of an answer that are read.
_ANSWER_LIMIT = 300


class Refused(Exception):
    """Raised when the webhook answers with anything but 2xx."""


class Courier:
    """Delivers the notifications of one process."""

    def __init__(self, publisher: Publisher, webhook: WebhookSettings | None) -> None:
        self._publisher = publisher
        self._webhook = webhook
        self._failures = {"broker": 0, "webhook": 0}

    def publish(self, routing_key: str, event_id: str, body: bytes) -> str | None:
        """Publish an event, confirmed, whether or not anybody has bound a queue; return what went wrong."""

        def publish() -> None:
            properties = {
                "content_type": "application/json",
                "content_encoding": "utf-8",
                "correlation_id": event_id,
                "delivery_mode": 2,
            }
            self._publisher.publish(
                EVENTS_EXCHANGE, routing_key, body, properties, timeout_s=PUBLISH_TIMEOUT_S, mandatory=False
            )

        return self._try("broker", publish)

    def call(self, event_id: str, body: bytes) -> str | None:
        """Post to the webhook if one is set; return what went wrong."""
        webhook = self._webhook
        if webhook is None:
            return None
        return self._try("webhook", lambda: within(WEBHOOK_TIMEOUT_S, lambda: post(webhook, event_id, body)))

    def _try(self, way: str, deliver: Callable[[], None]) -> str | None:
        if self._failures[way] >= _PATIENCE:
            return f"{way}: not tried, it failed {_PATIENCE} times in a row"
        try:
            deliver()
        except (PublishError, TookTooLong, Refused) as exc:
            self._failures[way] += 1
            return f"{way}: {exc}"
        self._failures[way] = 0
        return None


def signature(secret: bytes, event_id: str, timestamp: int, body: bytes) -> str:
    """Return one signature of the header webhook-signature (https://www.standardwebhooks.com/)."""
    signed = b".".join((event_id.encode(), str(timestamp).encode(), body))
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def post(webhook: WebhookSettings, event_id: str, body: bytes) -> None:
    """Post a signed body once. Raises Refused, also for an endpoint that cannot be reached."""
    import urllib3

    timestamp = int(time.time())
    headers = {
        "content-type": "application/json",
        "user-agent": "autolabs-jobs",
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signature(s, event_id, timestamp, body) for s in webhook.secrets),
    }
    url = urllib3.util.parse_url(webhook.url)
    if url.auth:
        headers |= urllib3.make_headers(basic_auth=url.auth)
    pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(total=WEBHOOK_TIMEOUT_S))
    try:
        # A redirect would carry the signed body to wherever its answer says.
        answer = pool.request(
            "POST", url._replace(auth=None).url, body=body, headers=headers, redirect=False,
            preload_content=False,
        )  # fmt: skip
        said = b"" if 200 <= answer.status < 300 else answer.read(_ANSWER_LIMIT)
        answer.close()
    except (urllib3.exceptions.HTTPError, OSError) as exc:
        # Their texts may quote the path of the URL, which may be a secret.
        raise Refused(f"{url.host} cannot be reached ({type(exc).__name__})") from exc
    if not 200 <= answer.status < 300:
        text = printable(scrubbed(said.decode(errors="backslashreplace")))
        raise Refused(f"{url.host} answered {answer.status} {text}".rstrip())
