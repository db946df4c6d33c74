"""Deliver what somebody is to be told of: an event on the broker, and a signed webhook if one is set.

The container that committed a notification with what happened to a lab delivers it after its message is
acknowledged; what it could not do, or was killed over, the sweep of the outbox does. At least once, hence the
`id` of a notification is always the same.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import random
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from dispatcher.broker.publisher import Publisher
from dispatcher.broker.topology import EVENTS_EXCHANGE
from dispatcher.errors import PublishError
from dispatcher.text import printable, scrubbed
from dispatcher.trust import make_context, why_untrusted
from jobs.config.environment import WebhookSettings
from jobs.database.connection import Database
from jobs.database.notifications import Notification, settle, take
from jobs.waiting import TookTooLong, within

logger = logging.getLogger(__name__)

#: Seconds before one that failed is tried again: doubled from the first to the last, shortened at random.
FIRST_BACKOFF_S, MAX_BACKOFF_S = 20.0, 3600.0
#: Seconds before one is looked at again that was not tried, because the settings of the webhook are wrong.
UNTRIED_S = 120.0
#: Seconds after which nobody is told any more; the row stays.
GIVE_UP_S = 86_400.0
#: Seconds that one delivery may take; a sweep does not begin one with less time left.
DELIVERY_S = 8.0
#: Seconds for the broker's confirm.
PUBLISH_TIMEOUT_S = 3.0
#: Seconds for a webhook in all, from the look-up of its name to the end of its answer.
WEBHOOK_TIMEOUT_S = 3.0
#: Failures in a row after which a way is not tried again in this process.
_PATIENCE = 3
#: Longest part of an answer that is read, in bytes.
_ANSWER_LIMIT = 300


class Refused(Exception):
    """Raised when the webhook answers with anything but 2xx."""


class Problem(NamedTuple):
    """The reason why a notification did not leave one way."""

    #: Without passwords.
    said: str
    #: False: nothing was attempted, so that it does not count.
    tried: bool = True


class Notifier:
    """The two ways by which notifications leave a process; what goes wrong is returned, never raised."""

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
        properties = {
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "correlation_id": event_id,
            "delivery_mode": 2,
        }
        return self._try(
            "broker",
            lambda: self._publisher.publish(
                EVENTS_EXCHANGE, routing_key, body, properties, timeout_s=PUBLISH_TIMEOUT_S, mandatory=False
            ),
        )

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

    def _try(self, way: str, deliver: Callable[[], object]) -> Problem | None:
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


def deliver_one(database: Database, notifier: Notifier, row_id: int | None = None) -> bool | None:
    """Deliver the notification, or whichever is due; True: delivered, None: there was none to deliver.

    A notifier whose way to the broker is shut takes none. Raises JobError for the database.
    """
    found = None if notifier.is_shut else take(database, row_id)
    if found is None:
        return None
    problems = _deliver(notifier, found)
    said = "; ".join(problem.said for problem in problems)
    tried = any(problem.tried for problem in problems)
    delay_s = _delay_s(found, tried=tried) if problems else 0
    settle(database, found, failed=tried, error=said, delay_s=delay_s)
    _log(found, said, given_up=delay_s is None)
    return not problems


def sweep(database: Database, notifier: Notifier, *, timeout_s: float) -> tuple[int, int]:
    """Deliver what is due for `timeout_s` seconds; return how many were delivered, and how many not.

    It ends early, and leaves the others as they are, when the broker fails again and again; a webhook that
    does is not called again. Raises JobError for the database.
    """
    deadline = time.monotonic() + timeout_s
    delivered = failed = 0
    while deadline - time.monotonic() > DELIVERY_S:
        done = deliver_one(database, notifier)
        if done is None:
            break
        delivered, failed = delivered + done, failed + (not done)
    return delivered, failed


def _deliver(notifier: Notifier, found: Notification) -> list[Problem]:
    """Do what is not done yet, note what was, and return what went wrong."""
    problems = []
    if not found.published:
        problems.append(notifier.publish(f"{found.event_type}.{found.told}", found.id, found.body()))
        found.published = problems[-1] is None
    if not found.called:
        problems.append(notifier.call(found.id, found.body()))
        found.called = problems[-1] is None
    return [problem for problem in problems if problem]


def _delay_s(found: Notification, *, tried: bool) -> float | None:
    """Return the seconds until the next attempt, or None if there is to be none."""
    delay_s = UNTRIED_S
    if tried:
        backoff_s = FIRST_BACKOFF_S * 2.0 ** min(found.failures, 20)
        delay_s = min(MAX_BACKOFF_S, backoff_s) * random.uniform(0.5, 1.0)
    return delay_s if found.age_s + delay_s < GIVE_UP_S else None


def _log(found: Notification, problem: str, *, given_up: bool) -> None:
    extra = {"action": "notified", "notification": found.id, "cause": found.cause, "told": found.told}
    if not problem:
        logger.info("%s is told", found.told, extra=extra)
        return
    extra |= {"action": "notification_given_up" if given_up else "notification_waits"}
    level = logging.ERROR if given_up else logging.WARNING
    logger.log(level, "%s is not told: %s", found.told, problem, extra=extra)


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
    pool = urllib3.PoolManager(
        retries=False,
        timeout=urllib3.Timeout(total=WEBHOOK_TIMEOUT_S + 1),
        ssl_context=make_context(webhook.ca_file) if url.scheme == "https" else None,
    )
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
        reason = why_untrusted(exc) or type(exc).__name__
        raise Refused(f"{url.host} cannot be reached ({reason})") from exc
    if not 200 <= answer.status < 300:
        text = printable(scrubbed(said.decode(errors="backslashreplace")))
        raise Refused(f"{url.host} answered {answer.status} {text}".rstrip())
