from __future__ import annotations

from typing import Any

import pytest

from dispatcher.message import encode
from dispatcher.redaction import safe_repr
from tests.support.factories import make_task


@pytest.mark.parametrize(
    "value",
    [
        {"password": "hunter2"},
        {"db": {"PGPASSWORD": "hunter2"}},
        {"api_key": "hunter2"},
        {"API-KEY": "hunter2", "apiKey": "hunter2"},
        {"registry_token": ["hunter2"]},
        [{"Authorization": "hunter2"}],
        ("amqp://user:hunter2@host/vhost",),
        {"url": "postgresql://user:hunter2@host:5432/db?x=1"},
        {"url": "see https://:hunter2@host and redis://:hunter2@other"},
        {"url": "amqp://user:hun@ter2@host"},
    ],
)
def test_secrets_are_hidden(value: Any) -> None:
    text = safe_repr(value)
    assert "hunter2" not in text
    assert "ter2" not in text
    assert "***" in text


@pytest.mark.parametrize(
    "value",
    [
        {"lab_instance_id": 1, "docker_image": "registry.example/x:1.0"},
        (1, None, "text", 1.5, True),
        {"url": "https://host/path?next=https://other/"},
        {"mail": "teacher@example.org"},
    ],
)
def test_all_else_is_its_repr(value: Any) -> None:
    assert safe_repr(value) == repr(value)


def test_long_texts_are_cut() -> None:
    assert safe_repr("x" * 5000) == "'" + "x" * 1020 + "..."


def test_headers_hold_no_secret_and_the_body_holds_all() -> None:
    body, sent = encode(make_task(args=["amqp://u:hunter2@h"], kwargs={"token": "hunter2"}))
    assert "hunter2" not in repr(sent)
    assert body.count(b"hunter2") == 2
