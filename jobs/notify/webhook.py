"""How a notification leaves the platform: an event on the broker, and a signed webhook if one is set.

Neither raises: what went wrong is returned as a sentence, without passwords. After a few failures in a row
a way is shut, and nobody should take more of the notifications in this process.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from dispatcher.broker.publisher import Publisher
from dispatcher.broker.topology import EVENTS_EXCHANGE
from dispatcher.errors import PublishError
from dispatcher.text import printable, scrubbed
from jobs.config.environment import WebhookSettings
from jobs.waiting import TookTooLong, within

logger = logging.getLogger(__name__)

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


class Problem(NamedTuple):
    """Why a notification did not leave one way."""

    said: str
    #: False: nothing was attempted, so that it does not count.
    tried: bool = True


class Courier:
    """Delivers the notifications of one process."""

    def __init__(self, publisher: Publisher, webhook: WebhookSettings | None) -> None:
        self._publisher = publisher
        self._webhook = webhook
        self._failures = {"broker": 0, "webhook": 0}
        for problem in webhook.problems if webhook else ():
            logger.error(
                "the webhook is not called, notifications wait: %s", problem, extra={"action": "settings"}
            )

    @property
    def is_shut(self) -> bool:
        """True: the broker failed so often that no other notification should be taken."""
        return self._failures["broker"] >= _PATIENCE

    def publish(self, routing_key: str, event_id: str, body: bytes) -> Problem | None:
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

    def call(self, event_id: str, body: bytes) -> Problem | None:
        """Post to the webhook if one is set; return what went wrong."""
        webhook = self._webhook
        if webhook is None:
            return None
        if webhook.problems:
            return Problem(f"webhook: {'; '.join(webhook.problems)}", tried=False)
        if self._failures["webhook"] >= _PATIENCE:
            # The broker's events go on without it.
            return Problem(f"webhook: it failed {_PATIENCE} times in a row", tried=False)
        return self._try("webhook", lambda: within(WEBHOOK_TIMEOUT_S, lambda: post(webhook, event_id, body)))

    def _try(self, way: str, deliver: Callable[[], None]) -> Problem | None:
        try:
            deliver()
        except (PublishError, TookTooLong, Refused) as exc:
            said = str(exc)
        except Exception as exc:  # one notification must not keep all others from leaving
            # Not its text, which may quote the URL.
            said = f"it failed with {type(exc).__name__}"
        else:
            self._failures[way] = 0
            return None
        self._failures[way] += 1
        return Problem(f"{way}: {said}")


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
    try:
        url = urllib3.util.parse_url(webhook.url)
    except (urllib3.exceptions.HTTPError, ValueError) as exc:
        raise Refused("NOTIFY_WEBHOOK_URL is not a URL that can be called") from exc
    if url.auth:
        # A URL has them percent-encoded, the header as they are.
        headers["authorization"] = "Basic " + base64.b64encode(unquote_to_bytes(url.auth)).decode()
    # Longer than its caller waits, so that of a server that hangs always the same is said.
    pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(total=WEBHOOK_TIMEOUT_S + 1))
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
