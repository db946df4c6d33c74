"""What goes wrong on the way to a webhook stays with the notifier."""

from __future__ import annotations

import base64

import pytest

from dispatcher.broker.publisher import Publisher
from dispatcher.settings import BrokerSettings
from jobs.config.environment import WebhookSettings
from jobs.notify.notifications import Notifier, post
from tests.support.http_server import Answer, ScriptedServer

KEYS = (b"secret of the tests, 32 bytes ok",)


@pytest.fixture
def publisher() -> Publisher:
    """A publisher of a broker that is nowhere."""
    return Publisher(BrokerSettings("amqp://127.0.0.1:9"), name="test")


@pytest.mark.parametrize(
    "url",
    [
        "http://ex ample/hunter2",
        "http://ex\u00e4mple/hunter2",
        f"http://{'x' * 64}.example/hunter2",
        "http://a..b/hunter2",
        "http://[::1/hunter2",
        "http://127.0.0.1:99999/hunter2",
        "http:///hunter2",
        "hunter2",
    ],
)
def test_no_url_is_worth_a_crash(publisher: Publisher, url: str) -> None:
    problem = Notifier(publisher, WebhookSettings(url, KEYS)).call("event-1", b"{}")
    assert problem is not None
    assert problem.said.startswith("webhook: ")
    assert problem.tried
    assert "hunter2" not in problem.said


def test_what_nobody_thought_of_is_no_crash_either(publisher: Publisher) -> None:
    problem = Notifier(publisher, WebhookSettings("http://127.0.0.1:9/", KEYS)).call("id\n\u4e16", b"{}")
    assert problem is not None
    assert problem.said == "webhook: it failed with UnicodeEncodeError"


def test_a_webhook_that_fails_three_times_in_a_row_is_called_no_more(publisher: Publisher) -> None:
    with ScriptedServer(lambda _request: Answer(500 if len(server.requests) != 3 else 204, {})) as server:
        notifier = Notifier(publisher, WebhookSettings(server.url, KEYS))
        problems = [notifier.call("event-1", b"{}") for _ in range(8)]
    tried = [None if problem is None else problem.tried for problem in problems]
    assert tried == [True, True, None, True, True, True, False, False]
    assert len(server.requests) == 6
    assert not notifier.is_shut, "the broker's events go on"


def test_wrong_settings_are_an_error_in_the_log_and_call_nobody(
    publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    webhook = WebhookSettings("http://host/", (), ("NOTIFY_WEBHOOK_SECRET: must be base64",))
    notifier = Notifier(publisher, webhook)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "NOTIFY_WEBHOOK_SECRET: must be base64" in record.getMessage()
    for _ in range(4):
        assert notifier.call("event-1", b"{}") == (
            "webhook: NOTIFY_WEBHOOK_SECRET: must be base64",
            False,
        )
    assert not notifier.is_shut


def test_user_and_password_of_the_url_are_sent_decoded() -> None:
    with ScriptedServer(lambda _request: Answer(204, {})) as server:
        url = server.url.replace("http://", "http://us%40er:p%3Aw%2F%C3%A9@")
        post(WebhookSettings(url, KEYS), "event-1", b"{}")
        (request,) = server.requests
    kind, _, credentials = request.headers["authorization"].partition(" ")
    assert (kind, base64.b64decode(credentials).decode()) == ("Basic", "us@er:p:w/\u00e9")
