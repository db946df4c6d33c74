"""The page on notifications: its code verifies what is really sent, and its body is that of an event."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from jobs.config.environment import WebhookSettings
from jobs.database.notifications import Notification
from jobs.notify.notifications import post
from tests.support.http_server import Answer, Request, ScriptedServer
from tests.support.webhook import SECRET

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "notifications.md").read_text()
KEYS = (b"another secret of 24 byte", b"secret of the tests, 32 bytes ok")
BODY = b'{"id": "x"}'

Verify = Callable[[Mapping[str, str], bytes, str], None]


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def verify() -> Verify:
    names: dict[str, Any] = {}
    exec(block("python"), names)  # the page's own code
    verify: Verify = names["verify"]
    return verify


@pytest.fixture(scope="module")
def sent() -> Request:
    with ScriptedServer(lambda _request: Answer(204, {})) as server:
        post(WebhookSettings(server.url, KEYS), "event-1", BODY)
        return server.requests[0]


def test_the_page_verifies_what_is_sent(verify: Verify, sent: Request) -> None:
    assert (sent.method, sent.body) == ("POST", BODY)
    assert sent.headers["content-type"] == "application/json"
    verify(sent.headers, sent.body, SECRET)


@pytest.mark.parametrize("part", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_the_page_refuses_what_was_changed(verify: Verify, sent: Request, part: str) -> None:
    kept, last = sent.headers[part][:-2], sent.headers[part][-2:]
    changed = {**sent.headers, part: kept + ("11" if last == "00" else "00")}
    with pytest.raises(ValueError, match="not from the platform"):
        verify(changed, sent.body, SECRET if part != "webhook-signature" else "A" * 32)


def test_the_page_refuses_another_body_and_another_secret(verify: Verify, sent: Request) -> None:
    for body, secret in ((sent.body + b" ", SECRET), (sent.body, "whsec_" + "A" * 32)):
        with pytest.raises(ValueError, match="not from the platform"):
            verify(sent.headers, body, secret)


def test_the_page_refuses_what_is_old(verify: Verify, sent: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: int(sent.headers["webhook-timestamp"]) + 301.0)
    with pytest.raises(ValueError, match="sent again"):
        verify(sent.headers, sent.body, SECRET)


def test_the_body_on_the_page_is_that_of_an_event() -> None:
    shown = json.loads(block("json"))
    event = Notification(
        row_id=1,
        event_type="lab.failed",
        lab_instance_id=12345,
        lab_id=456,
        student_id=789,
        cause="image_not_loadable",
        occasion=None,
        facts={},
        category="PERMANENT_IMAGE_ERROR",
        told="teacher",
        message=shown["message"],
        task_id=shown["task_id"],
        occurred_at=datetime(2026, 1, 2, 3, 4, 5, 678_000, timezone.utc),
        published=False,
        called=False,
        failures=0,
        age_s=0,
        last_error=None,
    )
    assert json.loads(event.body()) == shown
    assert [*json.loads(event.body())] == [*shown]
