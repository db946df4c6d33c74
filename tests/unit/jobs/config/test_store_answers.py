"""What jobs make of the answers of object stores elsewhere: other regions, and refusals."""

from __future__ import annotations

import pytest

from jobs.config.environment import StoreSettings
from jobs.config.objectstore import ObjectStore
from jobs.errors import JobError
from jobs.failures import Failure
from tests.support.http_server import Answer, Request, ScriptedServer, scripted

MALFORMED = (
    b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'us-east-1' is wrong; expecting"
    b" 'eu-central-1'</Message><Region>eu-central-1</Region></Error>"
)


def store_at(server: ScriptedServer, **settings: str) -> ObjectStore:
    return ObjectStore(StoreSettings(server.url, "key", "hidden", "bucket", **settings))


def in_frankfurt(request: Request) -> Answer:
    signed = "/eu-central-1/s3/" in request.headers["authorization"]
    return Answer(200, b"content") if signed else Answer(400, MALFORMED)


def test_the_region_that_the_store_names_is_kept_for_the_container() -> None:
    with ScriptedServer(in_frankfurt) as server:
        store = store_at(server)
        assert [store.read("a").content, store.read("b").content] == [b"content", b"content"]
    assert len(server.requests) == 3


def test_with_the_region_in_the_settings_no_request_is_made_twice() -> None:
    with ScriptedServer(in_frankfurt) as server:
        assert store_at(server, region="eu-central-1").read("a").content == b"content"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "body", "failure"),
    [
        (400, MALFORMED.replace(b"eu-central-1", b"us-east-1"), Failure.STORE_REFUSES_REQUEST),
        (400, b"<html>Bad Request</html>", Failure.STORE_REFUSES_REQUEST),
        (301, b"", Failure.STORE_REFUSES_REQUEST),
        (405, b"", Failure.STORE_REFUSES_REQUEST),
        (407, b"<html>proxy</html>", Failure.STORE_REFUSES_REQUEST),
        (401, b"", Failure.STORE_REFUSES_ACCESS),
        (403, b"<Code>InvalidAccessKeyId</Code>", Failure.STORE_REFUSES_ACCESS),
        (408, b"", Failure.STORE_AWAY),
        (429, b"<Code>SlowDown</Code>", Failure.STORE_AWAY),
        (501, b"", Failure.STORE_AWAY),
    ],
)
def test_only_what_may_pass_is_a_store_that_does_not_answer(
    status: int, body: bytes, failure: Failure
) -> None:
    with ScriptedServer(scripted(Answer(status, body))) as server, pytest.raises(JobError) as raised:
        store_at(server).read("settings.yaml")
    assert raised.value.failure is failure
    assert str(status) in raised.value.evidence


def test_a_refusal_tells_the_code_of_the_store() -> None:
    answer = Answer(400, b"<Error><Code>InvalidBucketName</Code></Error>")
    with ScriptedServer(scripted(answer)) as server, pytest.raises(JobError) as raised:
        store_at(server).read("settings.yaml")
    assert raised.value.failure is Failure.STORE_REFUSES_REQUEST
    assert "InvalidBucketName" in raised.value.evidence
    assert "hidden" not in str(raised.value)
