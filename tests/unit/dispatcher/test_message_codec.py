from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import string
import tracemalloc
import zlib
from datetime import datetime, timedelta, timezone
from typing import Any

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika.compat import long

from dispatcher.broker.amqp_properties import encode_properties
from dispatcher.errors import MalformedMessage
from dispatcher.message.body import MAX_BODY_BYTES
from dispatcher.message.envelope import (
    PUBLISHED_AT,
    TaskMessage,
    decode,
    encode,
    is_short_text,
    new_task_id,
    next_attempt,
)
from tests.support.factories import make_task, make_wire

#: Up to four bytes each, of the 255 that a short text may have.
characters = st.characters(codec="utf-8", categories=["L", "M", "N", "P", "S"])
printable = st.text(characters, min_size=1, max_size=60).filter(is_short_text)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text().filter(lambda key: key != "__type__"), inner, max_size=4)
    ),
    max_leaves=12,
)
moments = st.integers(0, 32 * 10**9 * 10**6).map(
    lambda us: datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=us)
)
#: Whole ones only: pika cuts what it reads as a float.
limits = st.none() | st.integers(0, 10**8)
tasks = st.builds(
    TaskMessage,
    name=printable,
    id=printable,
    args=st.lists(json_values, max_size=4),
    kwargs=st.dictionaries(st.text().filter(lambda key: key != "__type__"), json_values, max_size=4),
    retries=st.integers(0, 1_000_000),
    eta=st.none() | moments,
    expires=st.none() | moments,
    root_id=printable,
    parent_id=st.none() | printable,
    priority=st.integers(0, 255),
    timelimit=st.tuples(limits, limits),
    ignore_result=st.booleans(),
    group=st.none() | printable,
    group_index=st.none() | st.integers(0, 1000),
    shadow=st.none() | printable,
    origin=printable,
    reply_to=st.none() | printable,
    replaced_task_nesting=st.integers(0, 9),
    stamps=st.dictionaries(
        st.text(max_size=20), st.text(max_size=20) | st.lists(st.text(max_size=9), max_size=3), max_size=3
    ),
    published_at=moments,
    unsupported=st.dictionaries(
        st.sampled_from(["callbacks", "errbacks", "chain", "chord"]), json_values.filter(bool), max_size=4
    ),
)


#: kombu's names of what it calls gzip and bzip2.
COMPRESSIONS = [(zlib.compress, "application/x-gzip"), (bz2.compress, "application/x-bz2")]


def read(body: bytes, headers: dict[Any, Any] | None, **changes: Any) -> TaskMessage:
    how = {"content_type": "application/json", "content_encoding": "utf-8", **changes}
    return decode(body, pika.BasicProperties(headers=headers, **how))


def over_the_wire(task: TaskMessage) -> TaskMessage:
    """Return what is decoded after the properties were bytes."""
    body, sent = encode(task)
    return decode(body, pika.BasicProperties().decode(encode_properties(sent)))


@given(tasks)
def test_decoding_gives_back_what_was_encoded(task: TaskMessage) -> None:
    assert over_the_wire(task) == task


#: As pika gives them: what is not UTF-8 as bytes.
wire_texts = st.text(max_size=8) | st.binary(max_size=8)
header_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(max_size=300),
    st.binary(max_size=20),
    st.datetimes(),
    st.lists(st.text(max_size=5), max_size=3),
    st.dictionaries(wire_texts, st.integers() | wire_texts, max_size=3),
    st.sampled_from(["application/x-gzip", "application/x-bz2", "2026-01-01T00:00:00+23:59", "0001-01-01"]),
)
header_names = st.sampled_from([*make_wire()[1], "compression"]) | wire_texts
bodies = st.one_of(
    st.binary(max_size=200),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.lists(json_values, min_size=3, max_size=3).map(lambda value: json.dumps(value).encode()),
    st.just(make_wire()[0]),
)


@given(
    bodies,
    st.none() | st.dictionaries(header_names, header_values, max_size=12),
    st.none() | st.sampled_from(["application/json", "application/x-python-serialize", ""]) | wire_texts,
    st.none()
    | st.sampled_from(["utf-8", "utf-16", "latin-1", "binary", "base64", "idna", "rot13", "undefined"])
    | wire_texts,
    st.none() | wire_texts,
)
def test_any_delivery_is_a_task_or_malformed(
    body: bytes, headers: dict[Any, Any] | None, content_type: Any, content_encoding: Any, reply_to: Any
) -> None:
    how = {"content_type": content_type, "content_encoding": content_encoding, "reply_to": reply_to}
    for given_headers in (headers, make_wire()[1] | (headers or {})):
        for changes in (how, {"reply_to": reply_to}):
            with contextlib.suppress(MalformedMessage):
                task = read(body, given_headers, **changes)
                assert task.reply_to is None or isinstance(task.reply_to, str)
                encode_properties(encode(next_attempt(task))[1])


@pytest.mark.parametrize("encoding", ["punycode", "utf-16", "rot13"])
def test_a_content_encoding_that_json_never_has_is_refused(encoding: str) -> None:
    with pytest.raises(MalformedMessage, match=f"content encoding '{encoding}' is refused"):
        read(*make_wire(), content_encoding=encoding)


def test_a_content_encoding_that_is_no_text_is_named() -> None:
    with pytest.raises(MalformedMessage, match=r"content encoding b'\\xff' is refused; allowed are utf-8"):
        read(*make_wire(), content_encoding=b"\xff")


def test_names_of_stamps_that_cannot_be_published_again_are_left_out() -> None:
    body, headers = make_wire()
    stamps: dict[Any, Any] = {b"\xff": "b", "kept": b"\xff"}
    task = read(body, {**headers, "stamps": stamps})
    assert task.stamps == {"kept": "b'\\xff'"}
    encode_properties(encode(next_attempt(task))[1])


@pytest.mark.parametrize("text", ["\ud800", '\\\udfff"', "é\udc80\n"], ids=ascii)
def test_a_lone_surrogate_is_handed_on(text: str) -> None:
    _, headers = make_wire()
    content = [[text], {text: [text]}, {"chain": [text]}]
    task = read(json.dumps(content).encode(), headers)
    again, properties = encode(next_attempt(task))
    assert json.loads(again)[:2] == content[:2]
    assert read(again, properties["headers"]) == next_attempt(task)


@pytest.mark.parametrize("value", ["\ud800", "a\x00b", "\n", "é" * 128, b"text", None, 7])
def test_what_is_no_short_text(value: object) -> None:
    assert not is_short_text(value)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "not JSON"),
        (b"not json", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{}", "three-element"),
        (b"null", "three-element"),
        (b"[[], {}]", "three-element"),
        (b"[[], {}, {}, {}]", "three-element"),
        (b'["ab", {}, {}]', "args must be a list"),
        (b"[[], [], {}]", "kwargs an object"),
        (b"[[], null, {}]", "kwargs an object"),
        (b"[" * 200_000, "not JSON"),
        (b"[[" + b"9" * 5000 + b"], {}, {}]", "not JSON"),
        (b'[[{"__type__": "wat", "__value__": 1}], {}, {}]', "unknown wrapped type"),
        (b'[[{"__type__": ["x"], "__value__": 1}], {}, {}]', "unknown wrapped type"),
        (b'[[{"__type__": "base64", "__value__": "\\u00e9"}], {}, {}]', "not JSON"),
        (b'[[{"__type__": "base64", "__value__": "/w=="}], {}, {}]', "does not hold text"),
        (b" " * (MAX_BODY_BYTES + 1), "at most"),
    ],
)
def test_a_malformed_body_says_what_is_wrong(body: bytes, expected: str) -> None:
    with pytest.raises(MalformedMessage, match=expected):
        read(body, make_wire()[1])


FOLLOW_UP = [{"task": "x.follow_up", "args": [1]}]


@pytest.mark.parametrize("names", [["chain"], ["callbacks"], ["errbacks"], ["chord"], ["errbacks", "chain"]])
def test_a_follow_up_task_is_named_and_the_task_is_readable(names: list[str]) -> None:
    body = json.dumps([[], {"lab_instance_id": 7}, dict.fromkeys(names, FOLLOW_UP)]).encode()
    task = read(body, make_wire()[1])
    assert list(task.unsupported) == names
    assert task.kwargs == {"lab_instance_id": 7}


@pytest.mark.parametrize("embed", [None, {}, {"chain": None, "chord": None, "callbacks": [], "errbacks": []}])
def test_no_follow_up_task_is_nothing_to_object_to(embed: object) -> None:
    assert read(json.dumps([[], {}, embed]).encode(), make_wire()[1]).unsupported == {}


def test_a_task_that_is_published_again_does_not_forget_its_follow_up() -> None:
    task = make_task(unsupported={"chain": FOLLOW_UP})
    assert over_the_wire(next_attempt(task)).unsupported == {"chain": FOLLOW_UP}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("task", None, "'task' is missing"),
        ("task", "", "'task' is missing"),
        ("task", 7, "'task' is not a printable text"),
        ("task", "a\nb", "'task' is not a printable text"),
        ("id", None, "'id' is missing"),
        ("id", b"\xff", "'id' is not a printable text"),
        ("id", "é" * 128, "'id' is not a printable text"),
        ("retries", "one", "'retries' is not a count"),
        ("retries", "-1", "'retries' is not a count"),
        ("retries", 1.5, "'retries' is not a count"),
        ("retries", "9999999", "'retries' is not a count"),
        ("retries", -1, "'retries' is not a count"),
        ("retries", True, "'retries' is not a count"),
        ("retries", 2**40, "'retries' is not a count"),
        ("eta", "tomorrow", "'eta' is not an ISO 8601 time"),
        ("eta", 17, "'eta' is not a printable text"),
        ("expires", "x", "'expires' is not an ISO 8601 time"),
        ("expires", "0001-01-01T00:00:00+12:00", "'expires' is not an ISO 8601 time"),
        ("compression", "application/zstd", "compression 'application/zstd' is not supported"),
        ("compression", 3, "compression '3' is not supported"),
        ("compression", "application/x-gzip", "cannot be decompressed"),
        ("compression", "application/x-bz2", "cannot be decompressed"),
    ],
)
def test_a_malformed_header_is_named(name: str, value: object, expected: str) -> None:
    body, headers = make_wire()
    with pytest.raises(MalformedMessage, match=expected):
        read(body, {**headers, name: value})


@pytest.mark.parametrize(
    "content_type", [None, "application/x-python-serialize", "application/x-yaml", "text/plain"]
)
def test_only_json_is_read(content_type: str | None) -> None:
    with pytest.raises(MalformedMessage, match="refused; only application/json"):
        read(*make_wire(), content_type=content_type)


@pytest.mark.parametrize("headers", [None, {}])
def test_a_message_without_headers_is_malformed(headers: dict[str, Any] | None) -> None:
    with pytest.raises(MalformedMessage, match="not a Celery protocol v2"):
        read(make_wire()[0], headers)


def test_null_headers_count_as_absent() -> None:
    body, headers = make_wire()
    empty = {name: None for name in headers if name not in ("task", "id")}
    task = read(body, {**headers, **empty})
    assert (task.retries, task.eta, task.root_id, task.published_at) == (0, None, None, None)


def test_unknown_headers_are_ignored() -> None:
    body, headers = make_wire()
    assert read(body, {**headers, "x-new": [1, {"a": None}]}) == read(body, headers)


@pytest.mark.parametrize(("compress", "compression"), COMPRESSIONS, ids=["zlib", "bz2"])
def test_a_compressed_body_is_read(compress: Any, compression: str) -> None:
    body, headers = make_wire()
    assert read(compress(body), {**headers, "compression": compression}) == read(body, headers)


@pytest.mark.parametrize(("compress", "compression"), COMPRESSIONS, ids=["zlib", "bz2"])
def test_a_compression_bomb_is_refused_without_unpacking_it(compress: Any, compression: str) -> None:
    bomb = compress(b" " * (64 * MAX_BODY_BYTES))
    headers = make_wire()[1] | {"compression": compression}
    tracemalloc.start()
    with pytest.raises(MalformedMessage, match="decompressed body has more than"):
        read(bomb, headers)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * MAX_BODY_BYTES


def test_a_gzip_file_is_not_what_kombu_means() -> None:
    body, headers = make_wire()
    with pytest.raises(MalformedMessage, match="cannot be decompressed"):
        read(gzip.compress(body), {**headers, "compression": "application/x-gzip"})


@pytest.mark.parametrize(
    ("wrapped", "plain"),
    [
        ({"__type__": "uuid", "__value__": {"hex": "ab" * 16}}, "ab" * 16),
        ({"__type__": "datetime", "__value__": "2026-01-01T00:00:00"}, "2026-01-01T00:00:00"),
        ({"__type__": "decimal", "__value__": "1.5"}, "1.5"),
        ({"__type__": "bytes", "__value__": "text"}, "text"),
        ({"__type__": "base64", "__value__": "dGV4dA=="}, "text"),
    ],
)
def test_values_that_kombu_wraps_come_out_plain(wrapped: dict[str, Any], plain: str) -> None:
    body = json.dumps([[wrapped], {"x": wrapped}, None]).encode()
    task = read(body, make_wire()[1])
    assert (task.args, task.kwargs) == ([plain], {"x": plain})


@pytest.mark.parametrize("text", ["2026-01-01T12:00:00", "2026-01-01T12:00:00Z", "2026-01-02T08:00:00+20:00"])
def test_times_are_utc_whatever_the_producer_wrote(text: str) -> None:
    # PostgreSQL refuses offsets beyond 16 hours, so the ledger must not get them.
    body, headers = make_wire()
    task = read(body, {**headers, "eta": text, PUBLISHED_AT: text})
    assert task.eta == task.published_at == datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
    assert task.published_at is not None
    assert task.published_at.utcoffset() == timedelta(0)


def test_a_retry_keeps_the_id_and_counts() -> None:
    task = make_task(retries=2, eta=datetime.now(timezone.utc))
    again = next_attempt(task)
    assert (again.id, again.kwargs, again.retries, again.eta) == (task.id, task.kwargs, 3, None)


def test_task_ids_are_unique_uuids() -> None:
    ids = {new_task_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(i) == 36 and set(i) <= set(string.hexdigits + "-") for i in ids)


def test_properties_make_the_message_survive_a_restart() -> None:
    task = make_task()
    _, made = encode(task)
    assert (made["delivery_mode"], made["correlation_id"], made["priority"]) == (2, task.id, 0)
    assert (made["content_type"], made["content_encoding"]) == ("application/json", "utf-8")


def test_long_arguments_are_shortened_in_the_headers_only() -> None:
    task = make_task(args=["x" * 5000], kwargs={"y": "z" * 5000})
    body, headers = make_wire(task)
    assert len(headers["argsrepr"]) <= 1024
    assert len(headers["kwargsrepr"]) <= 1024
    assert read(body, headers).args == ["x" * 5000]


def test_the_timelimit_is_hard_then_soft() -> None:
    assert make_wire(make_task(timelimit=(30, 20.5)))[1]["timelimit"] == [30, 20.5]


def test_integers_of_64_bits_and_floats_are_read_as_pika_gives_them() -> None:
    task = over_the_wire(make_task(timelimit=(30.5, 2.0)))
    assert task.timelimit == (30, 2)
    body, headers = make_wire()
    assert read(body, {**headers, "retries": long(3)}).retries == 3


def test_a_task_that_expires_does_so_on_the_broker_too() -> None:
    _, made = encode(make_task(expires=datetime.now(timezone.utc) + timedelta(seconds=60)))
    assert 59_000 < int(made["expiration"]) <= 60_000
    _, late = encode(make_task(expires=datetime.now(timezone.utc) - timedelta(seconds=60)))
    assert late["expiration"] == "0"


def test_a_task_for_later_is_not_expired_by_a_rung_of_the_ladder() -> None:
    now = datetime.now(timezone.utc)
    _, made = encode(make_task(eta=now + timedelta(seconds=30), expires=now + timedelta(seconds=60)))
    assert "expiration" not in made


def test_odd_notes_are_no_reason_to_refuse_a_task() -> None:
    body, headers = make_wire()
    task = read(body, {**headers, "shadow": "x" * 300, "group": 7, "origin": b"\xff", "stamps": [1]})
    assert (task.shadow, task.group, task.origin, task.stamps) == (None, None, None, {})


@pytest.mark.parametrize(
    ("name", "value", "attribute", "left"),
    [
        (PUBLISHED_AT, "x", "published_at", None),
        ("root_id", {}, "root_id", None),
        ("parent_id", 7, "parent_id", None),
        ("timelimit", [1], "timelimit", (None, None)),
        ("timelimit", "60", "timelimit", (None, None)),
        ("timelimit", ["1", 5], "timelimit", (None, 5)),
        ("timelimit", [float("inf"), float("nan")], "timelimit", (None, None)),
        ("group_index", "x", "group_index", None),
        ("replaced_task_nesting", "0", "replaced_task_nesting", 0),
    ],
)
def test_an_odd_header_on_which_nothing_depends_is_left_out(
    name: str, value: object, attribute: str, left: object
) -> None:
    body, headers = make_wire()
    assert getattr(read(body, {**headers, name: value}), attribute) == left


@pytest.mark.parametrize(("value", "count"), [("2", 2), ("0", 0), (2.0, 2), (None, 0)])
def test_retries_are_read_as_other_languages_write_them(value: object, count: int) -> None:
    body, headers = make_wire()
    assert read(body, {**headers, "retries": value}).retries == count


ENCODINGS = [
    "UTF-8",
    "utf8",
    "UTF8",
    "Utf_8",
    "utf-8-sig",
    "latin-1",
    "ISO-8859-1",
    "windows-1252",
    "US-ASCII",
]


@pytest.mark.parametrize("encoding", [*ENCODINGS, " utf-8", "BINARY", "ascii-8bit", "8bit", "", None])
def test_a_content_encoding_is_read_in_any_case_and_spelling(encoding: str | None) -> None:
    assert read(*make_wire(), content_encoding=encoding).name == make_task().name


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/json;charset=UTF-8 "]
)
def test_a_content_type_may_have_parameters(content_type: str) -> None:
    assert read(*make_wire(), content_type=content_type).name == make_task().name


def test_a_byte_order_mark_is_passed_over() -> None:
    body, headers = make_wire()
    assert read(b"\xef\xbb\xbf" + body, headers).kwargs == make_task().kwargs


def test_a_task_is_known_by_its_correlation_id_where_no_header_names_it() -> None:
    body, headers = make_wire()
    del headers["id"]
    assert read(body, headers, correlation_id="ABC").id == "ABC"


PROTOCOL_1 = {
    "task": "celery_workers.delete_lab_pod",
    "id": "t-1",
    "args": [],
    "kwargs": {"lab_instance_id": 7},
}


@pytest.mark.parametrize("headers", [None, {}, {"x-trace": "1"}, {"task": None}])
def test_a_task_of_protocol_1_is_read(headers: dict[str, Any] | None) -> None:
    given = {**PROTOCOL_1, "retries": 1, "eta": None, "expires": "2026-01-02T03:04:05", "utc": True}
    task = read(json.dumps(given).encode(), headers)
    assert (task.name, task.id, task.kwargs) == (given["task"], "t-1", {"lab_instance_id": 7})
    assert (task.retries, task.eta) == (1, None)
    assert task.expires == datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def test_a_task_of_protocol_1_may_leave_arguments_out_and_names_its_follow_up() -> None:
    task = read(
        json.dumps({**PROTOCOL_1, "args": None, "kwargs": None, "callbacks": FOLLOW_UP}).encode(), None
    )
    assert (task.args, task.kwargs, list(task.unsupported)) == ([], {}, ["callbacks"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"id": None}, "'id' is missing"),
        ({"task": 7}, "'task' is not a printable text"),
        ({"args": {}}, "args must be a list"),
        ({"kwargs": []}, "kwargs an object"),
        ({"eta": "soon"}, "'eta' is not an ISO 8601 time"),
    ],
)
def test_what_is_wrong_with_a_task_of_protocol_1_is_named(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(MalformedMessage, match=expected):
        read(json.dumps({**PROTOCOL_1, **changes}).encode(), {})
