from __future__ import annotations

import struct
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika.compat import long

from dispatcher.broker.amqp_properties import encode_properties
from dispatcher.message.envelope import encode
from tests.support.factories import make_task

names = st.text(st.characters(codec="utf-8"), max_size=40)
fields = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(st.characters(codec="utf-8"), max_size=300)
    | st.binary(max_size=20)
    | st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(timezone.utc))  # noqa: DTZ001
    | st.decimals(-1000, 1000, places=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=10,
)
properties = st.fixed_dictionaries(
    {},
    optional={
        "content_type": names,
        "content_encoding": names,
        "headers": st.dictionaries(names, fields, max_size=6),
        "delivery_mode": st.integers(1, 2),
        "priority": st.integers(0, 255),
        "correlation_id": names,
        "reply_to": names,
        "expiration": names,
        "message_id": names,
        "timestamp": st.integers(0, 2**63 - 1),
        "type": names,
        "user_id": names,
        "app_id": names,
        "cluster_id": names,
    },
)


@given(properties)
def test_the_bytes_are_those_that_pika_writes(given_properties: dict[str, Any]) -> None:
    expected = b"".join(pika.BasicProperties(**given_properties).encode())
    assert encode_properties(given_properties) == expected


def test_a_task_is_written_as_pika_writes_it() -> None:
    _, sent = encode(make_task(eta=datetime.now(timezone.utc)))
    assert encode_properties(sent) == b"".join(pika.BasicProperties(**sent).encode())


def test_a_float_has_the_bytes_that_celerys_client_writes() -> None:
    # py-amqp writes 30.5 as the double it is; pika writes none.
    assert encode_properties({"headers": {"x": 30.5}})[6:] == b"\x01xd" + struct.pack(">d", 30.5)


def test_what_pika_has_read_can_be_written_again() -> None:
    headers = {"long": long(2**40), "small": long(1), "bytes": b"\xff", "time": datetime.now(timezone.utc)}
    read = pika.BasicProperties().decode(encode_properties({"headers": headers}))
    assert encode_properties({"headers": read.headers}) == encode_properties({"headers": headers})


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"headers": {"x": object()}}, "headers cannot be written as AMQP: a object is not a field"),
        ({"headers": {"x": 2**63}}, "headers cannot be written"),
        ({"headers": {"x": Decimal("NaN")}}, "headers cannot be written"),
        ({"headers": {"x" * 256: 1}}, "256 bytes; at most 255"),
        ({"correlation_id": "x" * 256}, "256 bytes; at most 255"),
        ({"correlation_id": 7}, "correlation_id cannot be written"),
        ({"priority": 256}, "priority cannot be written"),
        ({"priority": "high"}, "priority cannot be written"),
        ({"colour": "red"}, "properties colour are unknown"),
    ],
)
def test_what_amqp_does_not_have_is_named(wrong: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        encode_properties(wrong)
