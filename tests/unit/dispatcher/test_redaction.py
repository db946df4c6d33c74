from __future__ import annotations

import time
from typing import Any

import pytest

from dispatcher.message.envelope import encode
from dispatcher.text import printable, safe_repr, scrubbed
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
        {"url": "https://hunter2@host/path"},
        {"url": "https://hunter2:x-oauth-basic@host/path"},
        {"url": "git+HTTPS://hun@ter2@host and http://hunter2:@host"},
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
        {"url": "amqp://user@host and ssh://git@host"},
        {"url": "https://host?mail=a@b.org and https://host/@a and https://host#a@b"},
        ["https://host", "a@b.org"],
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


KEY_BLOCK = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIhunter2\n" * 3 + "-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    "text",
    [
        "password=hunter2",
        "PASSWORD = 'hunter2 hunter2'",
        'db_password: "hun\\"ter2 hunter2"',
        '{"user": "x", "password": "hunter2"}',
        '{\\"token\\": \\"hunter2\\"}',
        "{'apiKey': 'hunter2', 'x': 1}",
        "PGPASSWORD=hunter2 psql",
        "MYSQL_PWD=hun,ter2",
        "aws_secret_access_key=hunter2",
        "token: hunter2",
        "export SECRET=hunter2",
        "run --password hunter2 --user x",
        "run --db-token=hunter2",
        "Authorization: Bearer hunter2",
        "authorization: hunter2 hunter2",
        "> Authorization: Basic aHVudGVyMjpodW50ZXIy hunter2",
        "sent Bearer hunter2hunter2",
        "Cookie: a=1; session=hunter2",
        "cannot connect to postgresql://user:hunter2@host/db",
        "redis://:hunter2@host:6379",
        "fatal: unable to access 'https://hunter2@host/lab.git/'",
        "pull teacher:hunter2@registry.example/lab:1",
        'pwd="hunter2 \\" hunter2 \\',
        KEY_BLOCK,
        KEY_BLOCK.partition("\n")[2],
        KEY_BLOCK.rpartition("\n")[0],
        "hunter2+" + "A" * 60,
        "id AKIAHUNTER2HUNTER2",
        "key wJalrXUtnFEMI/K7MDENG/bPxRfiCYhunter2Key",
        "ghp_hunter2hunter2hunter2",
        "glpat-hunter2hunter2hunter2",
        "eyJhunter2hunter2.eyJhunter2.hunter2",
        "whsec_hunter2hunter2",
    ],
)
def test_secrets_in_free_text_are_hidden(text: str) -> None:
    found = scrubbed(f"before\n{text}\nafter")
    assert "hunter2" not in found
    assert "ter2" not in found
    assert "***" in found
    assert found.endswith("after") or "PRIVATE KEY" in text


@pytest.mark.parametrize(
    "text",
    [
        "Error: listen EADDRINUSE: address already in use 0.0.0.0:8080",
        "pulled registry.example/labs/x@sha256:" + "0123456789abcdef" * 4,
        "pulled labs:1@sha256:" + "0123456789abcdef" * 4,
        "at 12:30:45 root@lab-1 and git@registry.example",
        "commit 0123456789abcdef0123456789abcdef01234567",
        'Traceback (most recent call last):\n  File "/srv/app.py", line 3, in <module>',
        "KeyError: 'LAB_INSTANCE_ID'",
        "https://host/path?next=https://other/",
        "amqp://user@host/vhost is not reachable",
        "<https://host>, teacher@example.org",
        "Readiness probe failed: dial tcp 10.0.0.1:8080: connect: connection refused",
    ],
)
def test_what_helps_to_find_the_fault_stays(text: str) -> None:
    assert scrubbed(text) == text


HOSTILE = [
    "-eyJ", "eyJ", "eyJaaaaaaaa.", "-eyJ.", "-", "--", "-token", "--token-", "-a ", "secret", "token ",
    "dsn ", "secret-", "api_", "://", "://a:", "a:(", "(a:", "a@", "A", "Aa1.", "Aa1+", ".", "=>", "_",
    "\n", " ", "\t", "\\", '"', "'", '"password": "', 'pwd=" ', 'pwd=\\" ', "pwd='\\' ", "pwd\\",
    "basic ", "bearer\n", "cookie", "authorization:", "ghp_", "AKIA", "xoxb-", "whsec_", "-----",
    "-----BEGIN PRIVATE KEY", "-----END ", "PRIVATE KEY", "A" * 60 + "= ", "A" * 59 + "\n",
    "Ab1" * 13 + "C.", "É", "http://", "https://a", "http://a:",
]  # fmt: skip


@pytest.mark.parametrize("tail", ["", "\n", "\\", '"'])
@pytest.mark.parametrize("piece", HOSTILE)
def test_a_hostile_text_takes_no_time(piece: str, tail: str) -> None:
    # Of a text of four times the length a pattern that is quadratic needs 16 times as long.
    short, long = (piece * (length // len(piece)) + tail for length in (16_384, 65_536))
    assert min(_seconds(long) for _ in range(3)) < 8 * min(_seconds(short) for _ in range(3)) + 0.01


def _seconds(text: str) -> float:
    started = time.process_time()
    scrubbed(text)
    return time.process_time() - started


def test_control_characters_are_shown_as_escapes() -> None:
    hostile = "a\x00b\x1b[31mc\ud800d\u202ee\r\té"
    assert printable(hostile) == r"a\x00b\x1b[31mc\ud800d\u202ee\r\té"
    assert printable("plain, é") == "plain, é"
